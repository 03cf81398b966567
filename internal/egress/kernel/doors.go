package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// Doors are where packets of sandboxes are redirected to when addresses alone
// cannot decide about them. The proxy and the resolver listen there, on both
// addresses. Nothing gets in but what was redirected, with the sandbox's own
// address as its source; where it was going the kernel tells (SO_ORIGINAL_DST).
//
// If nobody listens, what is redirected is refused at once.
type Doors struct {
	Addr4, Addr6 netip.Addr
	// Proxy is a port of TCP, Resolver one of both UDP and TCP.
	Proxy, Resolver uint16
}

// theDoors have addresses of their own, so that no other program listens there
// unless it listens on all addresses.
func theDoors() Doors {
	return Doors{
		Addr4: netip.MustParseAddr("198.19.255.1"), Addr6: netip.MustParseAddr("fd6d:6f61:7400:1::1"),
		Proxy: 18080, Resolver: 18053,
	}
}

// Doors returns where the proxy and the resolver have to listen.
func (n *Network) Doors() Doors { return n.doors }

// has reports whether an address is one of the doors.
func (d Doors) has(a netip.Addr) bool { return a == d.Addr4 || a == d.Addr6 }

// loopback has the addresses of the doors: it is there on every kernel, and
// nothing arrives by it from outside.
const loopback = "lo"

// raiseDoors gives the node the addresses of the doors, unless it has them from
// an earlier process.
func (n *Network) raiseDoors() error {
	if err := raiseLoopback(); err != nil {
		return err
	}
	return n.eachDoor(func(lo netlink.Link, a *netlink.Addr) error {
		if err := netlink.AddrReplace(lo, a); err != nil {
			return fmt.Errorf("add address %v: %w", a.IPNet, err)
		}
		return nil
	})
}

func (n *Network) removeDoors() error {
	return n.eachDoor(func(lo netlink.Link, a *netlink.Addr) error {
		if err := netlink.AddrDel(lo, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %v: %w", a.IPNet, err)
		}
		return nil
	})
}

func (n *Network) eachDoor(do func(lo netlink.Link, a *netlink.Addr) error) error {
	lo, err := netlink.LinkByName(loopback)
	if err != nil {
		return fmt.Errorf("find %s: %w", loopback, err)
	}
	for _, a := range []netip.Addr{n.doors.Addr4, n.doors.Addr6} {
		// The scope keeps the node from taking it as the source of its own packets.
		if err := do(lo, &netlink.Addr{IPNet: netipx.AddrIPNet(a), Flags: flags(a), Scope: unix.RT_SCOPE_HOST}); err != nil {
			return err
		}
	}
	return nil
}
