package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// innerIf is the name of the sandbox's end of the pair.
const innerIf = "eth0"

// makePair creates the veth pair of a slot, both ends down and without
// addresses. The inner end never exists outside its namespace.
func makePair(s Slot, mtu int) (err error) {
	ns, err := os.Open(s.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = s.HostIf, mtu, s.GatewayMAC
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerNamespace = innerIf, s.MAC, netlink.NsFd(ns.Fd())
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("create interface pair %s: %w", s.HostIf, err)
	}
	return nil
}

// raiseHost gives the host's end its addresses and sets it up. The slot's
// rules must be in force by then.
func raiseHost(s Slot) error {
	if err := quietIPv6(s.HostIf); err != nil {
		return err
	}
	// Usually so already, but a machine may have other defaults for new interfaces.
	for _, setting := range []string{"ipv4/conf/", "ipv6/conf/"} {
		if err := setSysctl(setting+s.HostIf+"/forwarding", "1"); err != nil {
			return err
		}
	}
	return raise(s.HostIf, end{addr4: s.Gateway4, addr6: s.Gateway6, peer4: s.IP4, peer6: s.IP6, peerMAC: s.MAC})
}

// raiseInner does the same for the sandbox's end, and routes everything to the
// host. It runs inside the namespace.
func raiseInner(s Slot) error {
	e := end{addr4: s.IP4, addr6: s.IP6, peer4: s.Gateway4, peer6: s.Gateway6, peerMAC: s.GatewayMAC}
	if err := raise(innerIf, e); err != nil {
		return err
	}
	return addDefaultRoutes(innerIf, s.Gateway4, s.Gateway6)
}

func addDefaultRoutes(name string, gateways ...netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, gateway := range gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Dst: anywhere(gateway)}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route by %v: %w", gateway, err)
		}
	}
	return nil
}

func anywhere(family netip.Addr) *net.IPNet {
	return netipx.PrefixIPNet(netip.PrefixFrom(family, 0).Masked())
}

// end is one end of a pair.
type end struct {
	addr4, addr6 netip.Addr
	peer4, peer6 netip.Addr
	peerMAC      net.HardwareAddr
}

func raise(name string, e end) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, a := range []netip.Addr{e.addr4, e.addr6} {
		pair := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen()-1, a.BitLen())}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: pair, Flags: flags(a)}); err != nil {
			return fmt.Errorf("add address %v to %s: %w", a, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	for _, a := range []netip.Addr{e.peer4, e.peer6} {
		neighbour := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: e.peerMAC,
		}
		if err := netlink.NeighSet(neighbour); err != nil {
			return fmt.Errorf("set neighbour %v of %s: %w", a, name, err)
		}
	}
	return nil
}

// awaitReady waits until an end passes packets and takes its own. The kernel
// does the last of both a moment later, in the background, and until then
// drops silently what it is given: it notices that the link is up, and it learns
// that an IPv6 address is local.
func awaitReady(name string, own netip.Addr) error {
	const patience, pause = 5 * time.Second, 200 * time.Microsecond
	for deadline := time.Now().Add(patience); ; time.Sleep(pause) {
		// Asking for the state makes the kernel look (Linux 6.8 and later).
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp && isLocal(own) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready: it is %v, %v is local: %v", name, link.Attrs().OperState, own, isLocal(own))
		}
	}
}

// isLocal reports whether packets to an address are for this namespace.
func isLocal(a netip.Addr) bool {
	routes, err := netlink.RouteGet(a.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

// flags spare IPv6 addresses the search for duplicates: there is nobody else.
func flags(a netip.Addr) int {
	if a.Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

// raiseLoopback sets the loopback interface of a fresh namespace up.
func raiseLoopback() error {
	lo, err := netlink.LinkByName(loopback)
	if err != nil {
		return fmt.Errorf("find %s: %w", loopback, err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set %s up: %w", loopback, err)
	}
	return nil
}

// removePair deletes a pair by its host end; both ends go at once. It is no
// error if there is none.
func removePair(hostIf string) error {
	link, err := findPair(hostIf)
	if err == nil && link != nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface pair %s: %w", hostIf, err)
	}
	return nil
}

// lower sets a host end down, so that nothing passes while its rules go.
func lower(hostIf string) error {
	link, err := findPair(hostIf)
	if err == nil && link != nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("set %s down: %w", hostIf, err)
	}
	return nil
}

// findPair returns nothing if there is no such interface, or one that somebody
// else has made.
func findPair(hostIf string) (netlink.Link, error) {
	link, err := netlink.LinkByName(hostIf)
	if isNoLink(err) || err == nil && link.Type() != "veth" {
		return nil, nil
	}
	return link, err
}

func isNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}
