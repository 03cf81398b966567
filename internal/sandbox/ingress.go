package sandbox

import (
	"crypto/rand"
	"errors"
)

// Ingress says who reaches the ports of a sandbox from outside, and what the
// programs there see of it. It is settled at create. The zero Ingress lets
// nobody in without a token.
type Ingress struct {
	// Public lets everybody in. Otherwise each request needs the sandbox's
	// traffic token.
	Public bool `json:"public"`
	// AllowPublicTraffic is the flag exactly as given; nil when it never was.
	// Its meaning is already in Public.
	AllowPublicTraffic *bool `json:"allowPublicTraffic,omitempty"`
	// MaskHost, when not empty, is the Host header that programs see; "${PORT}"
	// in it stands for the port of the request.
	MaskHost string `json:"maskHost,omitempty"`
}

// ErrPublic: the sandbox is open to everybody, so it has no traffic token.
var ErrPublic = errors.New("sandbox is public")

// NewNonce returns what a traffic token is derived from, beside the server's
// own key: 130 random bits that are worth nothing by themselves.
func NewNonce() string { return rand.Text() }
