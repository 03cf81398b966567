package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The link between the node and the internet. Its addresses come from the
// ranges reserved for documentation.
const (
	nodeLink     = "uplink0"
	internetLink = "node0"
)

// NodeIP4 and NodeIP6 are the node's own addresses on its uplink; the internet
// sees them as the source of everything the node forwards.
var (
	NodeIP4 = netip.MustParseAddr("198.51.100.2")
	NodeIP6 = netip.MustParseAddr("2001:db8:1::2")

	internetIP4 = netip.MustParseAddr("198.51.100.1")
	internetIP6 = netip.MustParseAddr("2001:db8:1::1")
)

// connect joins the two namespaces by one veth pair, points the node's default
// routes at the internet and gives the internet its public addresses. The
// internet gets no default route: whatever it does not own goes nowhere.
func connect(node, internet *Space, public []netip.Addr) error {
	err := node.Do(func() error {
		pair := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: nodeLink},
			PeerName:      internetLink,
			PeerNamespace: netlink.NsFd(internet.ns),
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("make the node's uplink: %w", err)
		}
		return addAddrs(nodeLink, netip.PrefixFrom(NodeIP4, 24), netip.PrefixFrom(NodeIP6, 64))
	})
	if err != nil {
		return err
	}
	err = internet.Do(func() error {
		for _, addr := range public {
			if err := addAddrs("lo", netip.PrefixFrom(addr, addr.BitLen())); err != nil {
				return err
			}
		}
		return addAddrs(internetLink, netip.PrefixFrom(internetIP4, 24), netip.PrefixFrom(internetIP6, 64))
	})
	if err != nil {
		return err
	}
	return node.Do(func() error {
		if err := addDefaultRoute("0.0.0.0/0", internetIP4); err != nil {
			return err
		}
		return addDefaultRoute("::/0", internetIP6)
	})
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set interface %s up: %w", name, err)
	}
	return nil
}

// addAddrs sets the interface up with these addresses, usable at once.
func addAddrs(name string, prefixes ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	for _, p := range prefixes {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // nobody else is on this wire
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to interface %s: %w", p, name, err)
		}
	}
	return linkUp(name)
}

func addDefaultRoute(dst string, gateway netip.Addr) error {
	link, err := netlink.LinkByName(nodeLink)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", nodeLink, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       ipNet(netip.MustParsePrefix(dst)),
		Gw:        gateway.AsSlice(),
	}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("route %s by way of %s: %w", dst, gateway, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}
