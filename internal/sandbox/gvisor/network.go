package gvisor

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/config"
)

// wire is the network of a box as it is found in its namespace.
type wire struct {
	args    boot.CreateLinksAndRoutesArgs
	sockets []*os.File // one for each of its links
}

func (w *wire) close() { closeAll(w.sockets) }

// takeNetwork does what gVisor does too, in a way that suits a server: there,
// the packet sockets are inherited by whatever process is started next, which
// could be another box's sentry, and stay open until they are collected.
//
// It reads the interfaces that are up in the network namespace, with
// their addresses, routes and permanent neighbours, and opens a packet socket
// on each. The addresses are removed from them, or the host's kernel would
// answer in the box's place.
func takeNetwork(ns *os.File, conf *config.Config) (*wire, error) {
	if err := checkNotOurs(ns); err != nil {
		return nil, err
	}
	w := &wire{args: boot.CreateLinksAndRoutesArgs{LoopbackLinks: []boot.LoopbackLink{boot.DefaultLoopbackLink}}}
	err := onThrowawayThread(func() error {
		if err := enterNetNS(ns); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("look into network namespace: %w", err)
		}
		defer h.Close()
		return w.take(h, conf)
	})
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// take takes every interface that is up. It runs inside the namespace.
func (w *wire) take(h *netlink.Handle, conf *config.Config) error {
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range links {
		attrs := link.Attrs()
		if attrs.Flags&net.FlagUp == 0 || attrs.Flags&net.FlagLoopback != 0 {
			continue
		}
		if err := w.add(h, link, conf); err != nil {
			return fmt.Errorf("take interface %s: %w", attrs.Name, err)
		}
	}
	return nil
}

// checkNotOurs refuses the network namespace of the server, which has a way out.
func checkNotOurs(ns *os.File) error {
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &theirs); err != nil {
		return fmt.Errorf("look at network namespace: %w", err)
	}
	if err := unix.Stat("/proc/self/ns/net", &ours); err != nil {
		return fmt.Errorf("look at own network namespace: %w", err)
	}
	if theirs.Dev == ours.Dev && theirs.Ino == ours.Ino {
		return errors.New("the network namespace is the server's own")
	}
	return nil
}

// add takes one interface. One without addresses is left alone.
func (w *wire) add(h *netlink.Handle, link netlink.Link, conf *config.Config) error {
	attrs := link.Attrs()
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	if len(addrs) == 0 {
		return nil
	}
	taken := boot.FDBasedLink{
		Name: attrs.Name, MTU: attrs.MTU, LinkAddress: attrs.HardwareAddr,
		GSOMaxSize: attrs.GSOMaxSize, NumChannels: 1, ProcessorsPerChannel: conf.NetworkProcessorsPerChannel,
		TXChecksumOffload: conf.TXChecksumOffload, RXChecksumOffload: conf.RXChecksumOffload,
		QDisc: conf.QDisc,
	}
	for _, a := range addrs {
		prefix, _ := a.Mask.Size()
		taken.Addresses = append(taken.Addresses, boot.IPWithPrefix{Address: a.IP, PrefixLen: prefix})
	}
	if err := w.addNeighbours(h, attrs.Index, &taken); err != nil {
		return err
	}
	// Routes go with the addresses, so they are read first.
	if err := w.addRoutes(h, link, &taken); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	socket, err := packetSocket(attrs)
	if err != nil {
		return err
	}
	w.sockets = append(w.sockets, socket)
	w.args.FDBasedLinks = append(w.args.FDBasedLinks, taken)
	return nil
}

// addNeighbours reads the permanent neighbours: others are found anew.
func (w *wire) addNeighbours(h *netlink.Handle, index int, link *boot.FDBasedLink) error {
	neighbours, err := h.NeighList(index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range neighbours {
		if n.State == netlink.NUD_PERMANENT {
			link.Neighbors = append(link.Neighbors, boot.Neighbor{IP: n.IP, HardwareAddr: n.HardwareAddr})
		}
	}
	return nil
}

// addRoutes reads the routes over an interface. Default routes belong to the
// box as a whole.
func (w *wire) addRoutes(h *netlink.Handle, link netlink.Link, taken *boot.FDBasedLink) error {
	routes, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		route := boot.Route{Gateway: r.Gw, MTU: uint32(r.MTU)}
		if r.Dst != nil && !isDefault(r.Dst) {
			route.Destination = net.IPNet{IP: r.Dst.IP.Mask(r.Dst.Mask), Mask: r.Dst.Mask}
			taken.Routes = append(taken.Routes, route)
			continue
		}
		if r.Gw == nil {
			return errors.New("default route without a gateway")
		}
		into, all := &w.args.Defaultv4Gateway, net.IPNet{IP: net.IPv4zero, Mask: net.IPMask(net.IPv4zero)}
		if r.Family == netlink.FAMILY_V6 {
			into, all = &w.args.Defaultv6Gateway, net.IPNet{IP: net.IPv6zero, Mask: net.IPMask(net.IPv6zero)}
		}
		if !into.Route.Empty() {
			return fmt.Errorf("more than one default route: %s and %s", into.Route.Gateway, r.Gw)
		}
		route.Destination = all
		*into = boot.DefaultRoute{Route: route, Name: link.Attrs().Name}
	}
	return nil
}

func isDefault(dst *net.IPNet) bool {
	ones, _ := dst.Mask.Size()
	return ones == 0 && dst.IP.IsUnspecified()
}

// socketBuffer is what a packet socket can hold in each direction, in bytes: the
// kernel's default is too small for bursts.
const socketBuffer = 4 << 20

// packetSocket opens a packet socket on an interface of the namespace that the
// thread is in. It takes segments larger than the MTU if the interface does.
func packetSocket(link *netlink.LinkAttrs) (*os.File, error) {
	// No protocol yet, or the socket would first listen on every interface.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := bindPacketSocket(fd, link); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}

func bindPacketSocket(fd int, link *netlink.LinkAttrs) error {
	const allProtocols = unix.ETH_P_ALL << 8 // in network order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: link.Index}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	if link.GSOMaxSize > 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return fmt.Errorf("enable segmentation offload: %w", err)
		}
	}
	for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer); err != nil {
			return fmt.Errorf("enlarge packet socket's buffer: %w", err)
		}
	}
	return nil
}
