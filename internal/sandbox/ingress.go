package sandbox

import (
	"crypto/rand"
	"errors"
)

// Ingress says who reaches the ports of a sandbox from outside, and how the
// programs there are spoken to. It is settled at create. The zero Ingress lets
// nobody in without a token.
type Ingress struct {
	// Public lets everybody in. Otherwise each request needs the sandbox's
	// traffic token.
	Public bool `json:"public"`
	// AllowPublicTraffic is the flag exactly as given; nil when it never was.
	// Its meaning is already in Public.
	AllowPublicTraffic *bool `json:"allowPublicTraffic,omitempty"`
	// Ports are exceptions to Public: true opens a port to everybody, false
	// demands the token there.
	Ports map[uint16]bool `json:"ports,omitempty"`
	// MaskHost, when not empty, is the Host header that programs see; "${PORT}"
	// in it stands for the port of the request.
	MaskHost string `json:"maskHost,omitempty"`
	// HTTPSPorts are where programs speak TLS.
	HTTPSPorts []uint16 `json:"httpsPorts,omitempty"`
}

// PublicPort reports whether everybody reaches a port, which is not the guest
// daemon's.
func (i Ingress) PublicPort(port uint16) bool {
	if public, excepted := i.Ports[port]; excepted {
		return public
	}
	return i.Public
}

// Private reports whether any port demands a token.
func (i Ingress) Private() bool {
	for _, public := range i.Ports {
		if !public {
			return true
		}
	}
	return !i.Public
}

// ErrPublic: every port is open to everybody, so there is no traffic token.
var ErrPublic = errors.New("sandbox is public")

// NewNonce returns what a traffic token is derived from, beside the server's
// own key: 130 random bits that are worth nothing by themselves.
func NewNonce() string { return rand.Text() }
