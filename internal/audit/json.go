package audit

import (
	"encoding/json"
	"time"
)

// line is a record as JSON. What is not known is left out.
type line struct {
	Time       time.Time `json:"time"`
	Cursor     uint64    `json:"cursor"`
	Decision   string    `json:"decision"`
	Sandbox    string    `json:"sandbox,omitempty"`
	Direction  string    `json:"direction"`
	Protocol   Protocol  `json:"protocol"`
	Address    string    `json:"address,omitempty"`
	Name       string    `json:"name,omitempty"`
	Port       uint16    `json:"port,omitempty"`
	Verdict    string    `json:"verdict"`
	Rule       string    `json:"rule,omitempty"`
	Entry      string    `json:"entry,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Generation uint64    `json:"generation"`
	BytesUp    uint64    `json:"bytesUp"`
	BytesDown  uint64    `json:"bytesDown"`
	DurationMs float64   `json:"durationMs"`
	Method     string    `json:"method,omitempty"`
	Path       string    `json:"path,omitempty"`
	Status     int       `json:"status,omitempty"`

	Intercepted bool     `json:"intercepted,omitempty"`
	Matched     string   `json:"matched,omitempty"`
	Injected    []string `json:"injected,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (r Record) MarshalJSON() ([]byte, error) { return json.Marshal(r.line()) }

func (r *Record) line() line {
	l := line{
		Time: r.Time.UTC(), Cursor: r.Cursor, Decision: r.ID.String(),
		Sandbox: r.Sandbox, Direction: r.Direction.String(), Protocol: r.Protocol,
		Name: r.Name, Port: r.Dst.Port(),
		Verdict: r.Verdict.String(), Rule: r.Rule, Entry: r.Entry, Reason: r.Reason, Generation: r.Generation,
		BytesUp: r.BytesUp, BytesDown: r.BytesDown,
		DurationMs: float64(r.Duration.Microseconds()) / 1000,
		Method:     r.Method, Path: r.Path, Status: r.Status,
		Intercepted: r.Intercepted, Matched: r.Matched, Injected: r.Injected,
	}
	if addr := r.Dst.Addr(); addr.IsValid() {
		l.Address = addr.String()
	}
	return l
}

// droppedLine stands in a file for records that are missing there.
type droppedLine struct {
	Time    time.Time `json:"time"`
	Dropped uint64    `json:"dropped"`
}
