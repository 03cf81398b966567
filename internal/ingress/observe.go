package ingress

import (
	"net/netip"
	"time"
)

// Observer is told of every request for a known sandbox, once, when it is over.
// Requests for ids that nobody has are only counted: strangers could fill a
// record with them.
type Observer interface {
	// Finished is called on the request's goroutine, so it must be quick, and
	// by many at once.
	Finished(Record)
}

// Record is what happened to one request. It holds no header, no query and so
// no credential.
type Record struct {
	Time     time.Time // when its headers had arrived
	Duration time.Duration
	Client   netip.Addr // invalid for the operator's socket
	Sandbox  string
	Port     uint16
	Method   string
	Path     string // escaped, as the client sent it, so of any length and content

	Verdict Verdict
	// Reason is what let the request pass; for one that was denied, the
	// error_code that says why.
	Reason Reason
	// Status is what the client was answered, 101 for an upgraded connection,
	// 0 when it left before it was answered.
	Status int
	// Failure is the error_code when the request passed and the ingress had to
	// answer in the app's place; "broken_off" when the app's answer began and
	// did not end well.
	Failure string
	// BytesIn and BytesOut are what of bodies and upgraded connections went to
	// the app and came from it.
	BytesIn, BytesOut int64
}

// Verdict is what the ingress did with a request.
type Verdict string

// A request was passed to the sandbox, refused, or answered by the ingress
// itself in good order.
const (
	Allowed  Verdict = "allowed"
	Denied   Verdict = "denied"
	Answered Verdict = "answered"
)

// Reason is why; see Record.
type Reason string

// What lets requests pass.
const (
	ByEverybody  Reason = "public"
	ByToken      Reason = "traffic_token"
	ByGuestToken Reason = "guest_token"
	ByLink       Reason = "link"
)

// What the ingress answers itself: a link by a cookie, a preflight, and a path
// that lacks its last slash by the one that has it.
const (
	LinkFollowed Reason = "link_followed"
	Preflight    Reason = "preflight"
	SlashAdded   Reason = "slash_added"
)
