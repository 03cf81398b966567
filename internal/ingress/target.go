package ingress

import (
	"net/netip"
	"slices"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/secret"
)

// Lookup finds running sandboxes. It is asked once per request, also for ids
// that nobody ever had, so it must answer from memory.
type Lookup interface {
	Sandbox(id string) (Target, bool)
}

// Target is one life of one sandbox, as far as its public URLs go.
type Target struct {
	ID string
	// Addr is where the sandbox is reached. Nothing else is ever dialled.
	Addr netip.Addr
	// Done is closed when this life of the sandbox ends, and before anything
	// of it is torn down: a connection that the dying sandbox closes in good
	// order cannot be told from a complete answer. It identifies this life,
	// so no two lives share one.
	Done <-chan struct{}
	// Public lets everybody reach the sandbox's ports. Otherwise a request
	// needs Token, and without one nobody gets in.
	Public bool
	// Ports are exceptions to Public: true opens a port to everybody, false
	// asks for Token there. The guest's port knows no exception.
	Ports map[uint16]bool
	Token secret.String
	// LinkKey signs links and their cookies (package link). It changes with
	// Token. When it is empty no link is valid.
	LinkKey secret.String
	// GuestToken is what the guest daemon itself asks for, empty when it asks
	// for nothing. On the guest's port it does what Token does elsewhere, and
	// it is never passed on to other programs.
	GuestToken secret.String
	// MaskHost, when not empty, replaces the Host header that programs in the
	// sandbox see; "${PORT}" in it stands for the port. The guest daemon's
	// port is not masked.
	MaskHost string
	// HTTPSPorts are spoken to over TLS, with whatever certificate they have.
	// The guest daemon's port never is.
	HTTPSPorts []uint16
}

// complete guards against a lookup that answers with too little to be sure
// where the request would end up.
func (t Target) complete(addr address) bool {
	return t.ID == addr.id && t.Addr.IsValid() && t.Done != nil
}

// public reports whether everybody may reach a port.
func (t Target) public(port uint16) bool {
	if open, excepted := t.Ports[port]; excepted && port != api.GuestPort {
		return open
	}
	return t.Public
}

// scheme is what the program on a port speaks.
func (t Target) scheme(port uint16) string {
	if port != api.GuestPort && slices.Contains(t.HTTPSPorts, port) {
		return "https"
	}
	return "http"
}
