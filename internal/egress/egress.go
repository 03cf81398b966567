// Package egress holds what the parts of the data plane that speak for
// sandboxes (proxy, resolver, dialler) have in common: who a packet belongs
// to, and what it means that an address is never reachable.
package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Tenant is the sandbox behind an address and the policy that is in force for
// it. The zero Tenant is denied everything.
type Tenant struct {
	// Sandbox is the sandbox's id. Ids are never used twice, so state may be
	// kept by it; addresses are.
	Sandbox string
	// Team owns the sandbox, and the secrets that its rules may name.
	Team   string
	Policy *policy.Policy
	// Generation numbers the policy.
	Generation uint64
	// StrictDNS makes names that the policy does not allow not exist; otherwise
	// they resolve to addresses to which no route leads.
	StrictDNS bool
}

// Tenants knows whom a source address belongs to at this moment. The kernel
// pins the addresses, so a sandbox cannot pretend to be another one.
// Implementations are safe for concurrent use and answer from memory.
type Tenants interface {
	// Tenant returns false for an address that no sandbox has.
	Tenant(src netip.Addr) (Tenant, bool)
}

// Flows are the live connections of sandboxes that some part of the data plane
// carries. Whoever changes a tenant does so first, and then tells the flows.
type Flows interface {
	// Reevaluate puts a sandbox's flows under a new policy and returns how many
	// it cut because that policy denies them.
	Reevaluate(sandbox string, next Tenant) (cut int)
	// Forget cuts every flow of a sandbox that has ended, and returns how many
	// there were. Tenants must not know the sandbox any more.
	Forget(sandbox string) (cut int)
}

// Target is where to connect to on behalf of a sandbox. The policy has allowed
// it already; what is never reachable is not reached all the same.
type Target struct {
	// Name is to be looked up, or Addr is connected to as it is.
	Name policy.Name
	// Addr has the port in any case.
	Addr netip.AddrPort
	// Permit says which of the addresses of a name will do; nil takes all.
	Permit func(netip.Addr) bool
	// Through is the proxy to take; nil takes none.
	Through *policy.Upstream
	// Home is policy.PortHTTP or policy.PortHTTPS if Name is of a public URL of
	// this server that is judged as that; it is not looked up then, and nothing
	// leaves the machine. 0 for all others.
	Home uint16
	// Src is the address of the sandbox on whose behalf the connection is made.
	Src netip.Addr
}

// Attempt is a TCP connection that is being made. Who has it owns the
// descriptor, a non-blocking socket.
type Attempt struct {
	FD     int
	Remote netip.AddrPort
	// Patience is how long it is worth waiting for before other ways are tried.
	Patience time.Duration
}

// Why a name has no address to connect to.
var (
	ErrInvalidName = errors.New("not a valid DNS name")
	ErrNoSuchName  = errors.New("no such name")
	ErrNoAddress   = errors.New("the name has no address")
	// ErrNoAnswer says that no name server gave a usable answer.
	ErrNoAnswer = errors.New("no name server answers")
)

// ForbiddenError says that an address is never reachable, whatever a policy
// allows. Who dials and who resolves return the same one.
type ForbiddenError struct {
	Addr netip.Addr
	// Why completes the sentence "never reachable: ...".
	Why string
}

// Error implements error.
func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("%v is never reachable: %s", e.Addr, e.Why)
}

// NotPermittedError says that a name has addresses, and Permit of the Target
// takes none of them.
type NotPermittedError struct {
	Name string
	Addr netip.Addr // the first of them
}

// Error implements error.
func (e *NotPermittedError) Error() string {
	return fmt.Sprintf("the policy allows neither the name %s nor its address %v", e.Name, e.Addr)
}

// Judge returns a *ForbiddenError if an address may not be contacted on behalf
// of any sandbox. A nil table forbids all addresses.
func Judge(never *policy.Never, addr netip.Addr) error {
	if found, forbidden := never.Find(addr); forbidden {
		if !addr.IsValid() {
			found.Why = "not an address"
		}
		return &ForbiddenError{Addr: addr, Why: found.Why}
	}
	return nil
}
