// Package audit keeps what the network of sandboxes did: one record for every
// flow or request, allowed or refused. Records say who talked to whom and why
// that was allowed or not. They never hold what was said: no query strings,
// header values or bodies.
//
// Nothing here ever makes traffic wait. Memory is bounded, what does not fit is
// dropped, and everything that is dropped is counted.
package audit

import (
	"encoding/base32"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/moat-sandbox/moat/internal/policy"
)

// ID names one decision. It is shown to the sandbox that is refused, so it
// tells nothing about others: it is random.
type ID uint64

// NewID returns a fresh id. It is never 0.
func NewID() ID {
	for {
		if id := ID(rand.Uint64()); id != 0 {
			return id
		}
	}
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns 13 lower-case letters and digits.
func (id ID) String() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	return idEncoding.EncodeToString(b[:])
}

// Direction says who began a flow.
type Direction uint8

const (
	// Out is a flow that the sandbox began.
	Out Direction = iota
	// In is a flow towards the sandbox.
	In
)

// String returns "out" or "in".
func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}

// Protocol is the outermost protocol that a decision was about.
type Protocol string

// The protocols of records. TLS, HTTP and DNS are recorded as such only by what
// looked into them; the same bytes let through by address are TCP or UDP.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	ICMP Protocol = "icmp"
	TLS  Protocol = "tls"
	HTTP Protocol = "http"
	DNS  Protocol = "dns"
)

// Record is one flow, request or query. A refused one is recorded at once, all
// others when they have ended.
type Record struct {
	// Cursor is the record's place in the log, which sets it. Cursors grow,
	// across sandboxes and across restarts of the server.
	Cursor uint64
	// ID names the decision.
	ID ID
	// Time is when the flow began.
	Time time.Time
	// Sandbox is empty for what concerns none that exists.
	Sandbox   string
	Direction Direction
	Protocol  Protocol
	// Dst is the address that was contacted, or for a refused flow the one that
	// would have been. Its port is set even when there is no address. Of a flow
	// towards the sandbox the port is the sandbox's own, and the address the one
	// that it came from.
	Dst netip.AddrPort
	// Name is the name that was judged, in canonical form; empty when the flow
	// was judged by address.
	Name    string
	Verdict policy.Verdict
	// Rule is the part of the policy, or of what enforces it, that decided.
	Rule string
	// Entry is the entry of the policy that matched, if one did.
	Entry string
	// Reason says why, to people.
	Reason string
	// Generation numbers the policy that decided.
	Generation uint64
	// BytesUp were sent by who began the flow, BytesDown by the other side.
	BytesUp, BytesDown uint64
	Duration           time.Duration
	// Method, Path and Status are known for HTTP. Path has no query string. For
	// DNS, Method is the type of the question.
	Method, Path string
	Status       int
	// Intercepted says that the connection is TLS that was answered here, in the
	// place of the server. Protocol TLS without it was passed through unseen.
	Intercepted bool
	// Matched is the rule about requests that decided, if one did.
	Matched string
	// Injected are the names of the headers that were set. Their values are
	// nowhere in a record.
	Injected []string
}

// How long the texts of a record may be, in bytes. A sandbox chooses some of
// them and must not choose how much memory they take.
const (
	maxPath   = 512
	maxMethod = 32
	maxText   = 1024
)

// bound shortens what is too long, and what is no text becomes text.
func (r *Record) bound() {
	r.Name = clip(r.Name, maxText)
	r.Reason = clip(r.Reason, maxText)
	r.Entry = clip(r.Entry, maxText)
	r.Matched = clip(r.Matched, maxText)
	r.Method = clip(r.Method, maxMethod)
	path, _, _ := strings.Cut(r.Path, "?")
	r.Path = clip(path, maxPath)
}

// cut marks a text that is not shown to its end.
const cut = "..."

func clip(s string, limit int) string {
	if len(s) > limit {
		// A new string: the old one would keep all of its memory in use.
		s = s[:limit-len(cut)] + cut
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}
