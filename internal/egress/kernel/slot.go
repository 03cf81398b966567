package kernel

import (
	"errors"
	"net"
	"net/netip"
)

// Slot is the network of one sandbox: a namespace joined to the host by one
// veth pair, with fixed addresses on both ends and no bridge. It is born
// closed: until a policy is applied nothing passes in either direction.
type Slot struct {
	// Index numbers the slot; names and addresses follow from it.
	Index int
	// NetNS is the path of the namespace, for the runtime.
	NetNS string
	// HostIf is the host's end of the veth pair.
	HostIf string
	// IP4 and IP6 are the sandbox's addresses, Gateway4 and Gateway6 the host's.
	IP4, IP6           netip.Addr
	Gateway4, Gateway6 netip.Addr
	// MAC is the sandbox's address, GatewayMAC the host's. Both ends know each
	// other by permanent neighbour entries: no ARP, no neighbour discovery.
	MAC, GatewayMAC net.HardwareAddr
}

// Errors that callers branch on.
var (
	// ErrNoSlot: all slots of the address range are in use.
	ErrNoSlot = errors.New("no free network slot")
	// ErrUnknownSlot: there is no such slot, or not all of it.
	ErrUnknownSlot = errors.New("no such network slot")
	// ErrInUse: another moat owns this network namespace.
	ErrInUse = errors.New("another moat runs in this network namespace")
)
