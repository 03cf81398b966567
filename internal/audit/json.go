package audit

import (
	"encoding/json"
	"strconv"
	"time"
)

// MarshalJSON implements json.Marshaler. It fails for a time outside of the
// years that JSON knows.
func (r Record) MarshalJSON() ([]byte, error) { return r.appendJSON(nil) }

// appendJSON appends the record as an object, as encoding/json would write it
// but several times as fast: a busy server writes a line for each request. What
// is not known is left out.
func (r *Record) appendJSON(out []byte) ([]byte, error) {
	out, err := appendTime(append(out, '{'), r.Time)
	if err != nil {
		return nil, err
	}
	o := object(out)
	o.number("cursor", r.Cursor)
	o.must("decision", r.ID.String())
	o.text("sandbox", r.Sandbox)
	o.must("direction", r.Direction.String())
	o.must("protocol", string(r.Protocol))
	if addr := r.Dst.Addr(); addr.IsValid() {
		o.must("address", addr.String())
	}
	o.text("name", r.Name)
	if port := r.Dst.Port(); port != 0 {
		o.number("port", uint64(port))
	}
	o.must("verdict", r.Verdict.String())
	o.text("rule", r.Rule)
	o.text("entry", r.Entry)
	o.text("reason", r.Reason)
	o.number("generation", r.Generation)
	o.number("bytesUp", r.BytesUp)
	o.number("bytesDown", r.BytesDown)
	o.name("durationMs")
	o = strconv.AppendFloat(o, float64(r.Duration.Microseconds())/1000, 'f', -1, 64)
	o.text("method", r.Method)
	o.text("path", r.Path)
	if r.Status != 0 {
		o.name("status")
		o = strconv.AppendInt(o, int64(r.Status), 10)
	}
	if r.Intercepted {
		o.name("intercepted")
		o = append(o, "true"...)
	}
	o.text("matched", r.Matched)
	o.texts("injected", r.Injected)
	return append(o, '}'), nil
}

// appendDropped appends an object that stands in a file for records that are
// missing there.
func appendDropped(out []byte, at time.Time, dropped uint64) ([]byte, error) {
	out, err := appendTime(append(out, '{'), at)
	if err != nil {
		return nil, err
	}
	o := object(out)
	o.number("dropped", dropped)
	return append(o, '}'), nil
}

// appendTime appends the first member of an object.
func appendTime(out []byte, at time.Time) ([]byte, error) {
	out, err := at.UTC().AppendText(append(out, `"time":"`...))
	return append(out, '"'), err
}

// object is a JSON object that has a member already and goes on.
type object []byte

// name appends the name of a member, which needs no escaping.
func (o *object) name(name string) {
	*o = append(append(append(*o, `,"`...), name...), `":`...)
}

func (o *object) number(name string, n uint64) {
	o.name(name)
	*o = strconv.AppendUint(*o, n, 10)
}

func (o *object) must(name, text string) {
	o.name(name)
	*o = appendString(*o, text)
}

// text appends a text unless it is empty, and texts some unless there are none.
func (o *object) text(name, text string) {
	if text != "" {
		o.must(name, text)
	}
}

func (o *object) texts(name string, all []string) {
	if len(all) == 0 {
		return
	}
	o.name(name)
	sep := byte('[')
	for _, text := range all {
		*o = appendString(append(*o, sep), text)
		sep = ','
	}
	*o = append(*o, ']')
}

// appendString leaves to encoding/json what needs any thought.
func appendString(out []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			quoted, _ := json.Marshal(s) // never fails for a string
			return append(out, quoted...)
		}
	}
	return append(append(append(out, '"'), s...), '"')
}
