// Package wire reads HTTP/1.1 heads of the plainest form, in place and without
// allocating: those that mean the same to every reader. It is no HTTP parser:
// whatever is unusual, right or wrong, is "not plain", and is left to one.
package wire

import "bytes"

const (
	// MaxHead is the size up to which heads can be plain.
	MaxHead   = 1<<16 - 1 // what offsets of 16 bits reach
	maxFields = 64
)

// End returns the length of the head at the start of b, with the empty line
// that ends it; 0 when that has not arrived yet.
func End(b []byte) int {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		return i + 4
	}
	return 0
}

// Fields are the header fields of a head, as offsets into it.
type Fields struct {
	raw   []byte
	count int
	at    [maxFields]field
}

type field struct{ start, colon, value, valueEnd, end uint16 }

// Len is the number of fields.
func (f *Fields) Len() int { return f.count }

// Name returns the name of the i-th field, as it was written.
func (f *Fields) Name(i int) []byte { return f.raw[f.at[i].start:f.at[i].colon] }

// Value returns the value of the i-th field, without blanks around it.
func (f *Fields) Value(i int) []byte { return f.raw[f.at[i].value:f.at[i].valueEnd] }

// Line returns the i-th field whole, with its line end.
func (f *Fields) Line(i int) []byte { return f.raw[f.at[i].start:f.at[i].end] }

// parse reads the fields of a head from an offset on, and the empty line after
// them, with which the head ends. So no line is without its end.
func (f *Fields) parse(head []byte, at int) bool {
	f.raw, f.count = head, 0
	for ; at < len(head)-2; f.count++ {
		if f.count == maxFields {
			return false
		}
		l := &f.at[f.count]
		l.start = uint16(at)
		for inName[head[at]] {
			at++
		}
		if l.colon = uint16(at); l.colon == l.start || head[at] != ':' {
			return false // no name, a folded line, a blank before the colon
		}
		for at++; head[at] == ' ' || head[at] == '\t'; at++ {
		}
		l.value, l.valueEnd = uint16(at), uint16(at)
		for ; inValue[head[at]]; at++ {
			if head[at] != ' ' && head[at] != '\t' {
				l.valueEnd = uint16(at) + 1
			}
		}
		if head[at] != '\r' || head[at+1] != '\n' {
			return false
		}
		at += 2
		l.end = uint16(at)
	}
	return at == len(head)-2
}

// set is a set of bytes.
type set [256]bool

func setOf(chars string, ranges ...[2]byte) (s set) {
	for i := range len(chars) {
		s[chars[i]] = true
	}
	for _, r := range ranges {
		for c := int(r[0]); c <= int(r[1]); c++ {
			s[c] = true
		}
	}
	return s
}

var (
	// An underscore is the same as a dash to some programs, so names with one
	// are not plain.
	inName   = setOf("!#$%&'*+-.^`|~", [2]byte{'0', '9'}, [2]byte{'a', 'z'}, [2]byte{'A', 'Z'})
	inValue  = setOf("\t", [2]byte{' ', '~'}, [2]byte{0x80, 0xff})
	inTarget = setOf("-._~!$&'()*+,;=:@/%?", [2]byte{'0', '9'}, [2]byte{'a', 'z'}, [2]byte{'A', 'Z'})
)

// equal compares ASCII without case. name must be in lower case.
func equal(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	for i := range b {
		if c := b[i]; c != name[i] && (c < 'A' || c > 'Z' || c+'a'-'A' != name[i]) {
			return false
		}
	}
	return true
}

// length reads a Content-Length of at most 18 digits, in its one spelling.
func length(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// framing is what the fields say about the connection and the body.
type framing struct {
	length int64 // -1 when nothing says it
	last   bool  // "Connection: close"
}

// framing reads the fields by which one message is told from the next; false
// when any of them is not plain.
func (f *Fields) framing() (framing, bool) {
	is := framing{length: -1}
	connection := false
	for i := range f.count {
		name := f.Name(i)
		switch name[0] | 0x20 {
		default:
			continue
		case 'c', 'e', 'h', 'k', 'p', 't', 'u':
		}
		switch {
		case equal(name, "content-length"):
			n, ok := length(f.Value(i))
			if !ok || is.length >= 0 {
				return is, false
			}
			is.length = n
		case equal(name, "connection"):
			is.last = equal(f.Value(i), "close")
			if connection || !is.last && !equal(f.Value(i), "keep-alive") {
				return is, false
			}
			connection = true
		case equal(name, "transfer-encoding"), equal(name, "te"), equal(name, "trailer"), equal(name, "upgrade"),
			equal(name, "expect"), equal(name, "http2-settings"), len(name) > 6 && equal(name[:6], "proxy-"):
			return is, false
		}
	}
	return is, true
}

// IsHop reports whether a field of a plain head is about the connection alone.
func IsHop(name []byte) bool {
	return equal(name, "connection") || equal(name, "keep-alive")
}
