package audit

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// line is a record as encoding/json should write it.
type line struct {
	Time        time.Time `json:"time"`
	Cursor      uint64    `json:"cursor"`
	Decision    string    `json:"decision"`
	Sandbox     string    `json:"sandbox,omitempty"`
	Direction   string    `json:"direction"`
	Protocol    Protocol  `json:"protocol"`
	Address     string    `json:"address,omitempty"`
	Name        string    `json:"name,omitempty"`
	Port        uint16    `json:"port,omitempty"`
	Verdict     string    `json:"verdict"`
	Rule        string    `json:"rule,omitempty"`
	Entry       string    `json:"entry,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	Generation  uint64    `json:"generation"`
	BytesUp     uint64    `json:"bytesUp"`
	BytesDown   uint64    `json:"bytesDown"`
	DurationMs  float64   `json:"durationMs"`
	Method      string    `json:"method,omitempty"`
	Path        string    `json:"path,omitempty"`
	Status      int       `json:"status,omitempty"`
	Intercepted bool      `json:"intercepted,omitempty"`
	Matched     string    `json:"matched,omitempty"`
	Injected    []string  `json:"injected,omitempty"`
}

// FuzzRecordJSON: a record is written as encoding/json writes the same fields.
func FuzzRecordJSON(f *testing.F) {
	f.Add("/a", "GET", uint64(1), int64(1_500_000), int64(1_700_000_000_123_456_789), true, uint16(8080))
	f.Add("", "", uint64(0), int64(0), int64(0), false, uint16(0))
	f.Add("/<script>&\"\\\n\x00\u2028\xff\u00e9~", "\x7f", ^uint64(0), int64(-1000), int64(-1), true, uint16(65535))
	f.Fuzz(func(t *testing.T, text, other string, n uint64, took, at int64, some bool, port uint16) {
		r := Record{
			Cursor: n, ID: ID(n), Time: time.Unix(0, at), Sandbox: other, Protocol: HTTP, Name: text, Rule: other, Entry: text, Reason: other,
			Generation: n, BytesUp: n, BytesDown: n / 2, Duration: time.Duration(took), Method: other, Path: text, Status: int(port),
			Intercepted: some, Matched: other, Dst: netip.AddrPortFrom(netip.Addr{}, port),
		}
		if some {
			r.Verdict, r.Direction, r.Injected = policy.Allow, In, []string{text, other}
			r.Dst = netip.AddrPortFrom(netip.MustParseAddr("fe80::1%eth0"), port)
		}
		l := line{
			Time: r.Time.UTC(), Cursor: n, Decision: r.ID.String(), Sandbox: r.Sandbox, Direction: r.Direction.String(), Protocol: HTTP,
			Name: r.Name, Port: port, Verdict: r.Verdict.String(), Rule: r.Rule, Entry: r.Entry, Reason: r.Reason, Generation: n,
			BytesUp: r.BytesUp, BytesDown: r.BytesDown, DurationMs: float64(r.Duration.Microseconds()) / 1000,
			Method: r.Method, Path: r.Path, Status: r.Status, Intercepted: some, Matched: r.Matched, Injected: r.Injected,
		}
		if some {
			l.Address = r.Dst.Addr().String()
		}
		want, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.appendJSON([]byte("before"))
		if err != nil || string(got) != "before"+string(want) {
			t.Errorf("got %s, %v\nwant before%s", got, err, want)
		}
	})
}

func TestRecordOfNoYear(t *testing.T) {
	for _, year := range []int{-1, 10_000} {
		r := Record{Time: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)}
		if got, err := r.MarshalJSON(); err == nil {
			t.Errorf("the year %d is written as %s", year, got)
		}
	}
}

func BenchmarkRecordJSON(b *testing.B) {
	r := Record{
		Cursor: 1_700_000_000_000_000, ID: NewID(), Time: time.Now(), Sandbox: "iabcdefghijklmnopqrst", Direction: In, Protocol: HTTP,
		Dst: netip.MustParseAddrPort("192.0.2.1:8080"), Verdict: policy.Allow, Rule: "public", Reason: "the port is open to everybody",
		BytesDown: 42, Duration: 1234 * time.Microsecond, Method: "GET", Path: "/some/path", Status: 200,
	}
	b.ReportAllocs()
	var out []byte
	for b.Loop() {
		out, _ = r.appendJSON(out[:0])
	}
}
