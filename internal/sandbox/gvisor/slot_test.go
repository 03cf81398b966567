package gvisor

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// slot is a network namespace for one box, joined by a veth pair to another
// namespace from which the test talks to it. Neither has a route out.
type slot struct {
	box, peer *os.File
	addr      string
}

const (
	slotMAC, peerMAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
	// Addresses of the peer that only the default routes lead to.
	beyond4, beyond6 = "192.0.2.1", "2001:db8::1"
)

// ends describes the two ends of a slot's link.
var ends = map[bool]struct{ addrs, neighbours []string }{
	true:  {[]string{"10.77.0.2/30", "fd77::2/126"}, []string{"10.77.0.1", "fd77::1"}}, // the box's
	false: {[]string{"10.77.0.1/30", "fd77::1/126"}, []string{"10.77.0.2", "fd77::2"}},
}

func newSlot(t testing.TB) *slot {
	t.Helper()
	s := &slot{addr: "10.77.0.2"}
	for _, ns := range []**os.File{&s.box, &s.peer} {
		f, err := newNetNS()
		if err != nil {
			t.Fatal(err)
		}
		*ns = f
		t.Cleanup(func() { f.Close() })
	}
	if err := s.wire(); err != nil {
		t.Fatal(err)
	}
	return s
}

// close removes the slot before the test ends.
func (s *slot) close() {
	s.box.Close()
	s.peer.Close()
}

// path is the box's namespace, as seen by this process.
func (s *slot) path() string { return fmt.Sprintf("/proc/self/fd/%d", s.box.Fd()) }

func (s *slot) wire() error {
	peer, err := netlink.NewHandleAt(netns.NsHandle(s.peer.Fd()))
	if err != nil {
		return err
	}
	defer peer.Close()
	box, err := netlink.NewHandleAt(netns.NsHandle(s.box.Fd()))
	if err != nil {
		return err
	}
	defer box.Close()
	mac := func(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "out", mac(peerMAC)
	if err := peer.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: mac(slotMAC),
		PeerNamespace: netlink.NsFd(int(s.box.Fd())),
	}); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	if err := addAddrs(peer, "lo", beyond4+"/32", beyond6+"/128"); err != nil {
		return err
	}
	if err := configure(peer, "out", false, mac(slotMAC)); err != nil {
		return err
	}
	// The peer answers no ARP: without its neighbours written down the box
	// would reach nobody.
	if err := onThrowawayThread(func() error {
		if err := enterNetNS(s.peer); err != nil {
			return err
		}
		return os.WriteFile("/proc/sys/net/ipv4/conf/out/arp_ignore", []byte("8"), 0)
	}); err != nil {
		return err
	}
	if err := configure(box, "eth0", true, mac(peerMAC)); err != nil {
		return err
	}
	for _, gateway := range ends[true].neighbours {
		if err := box.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}); err != nil {
			return fmt.Errorf("add default route: %w", err)
		}
	}
	return nil
}

// configure sets one end of the link up, with its addresses and neighbours.
func configure(h *netlink.Handle, name string, box bool, mac net.HardwareAddr) error {
	if err := addAddrs(h, name, ends[box].addrs...); err != nil {
		return err
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, ip := range ends[box].neighbours {
		if err := h.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: net.ParseIP(ip), HardwareAddr: mac,
		}); err != nil {
			return fmt.Errorf("add neighbour: %w", err)
		}
	}
	return nil
}

func addAddrs(h *netlink.Handle, name string, addrs ...string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD // at once
		if err := h.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add address %s: %w", addr, err)
		}
	}
	return h.LinkSetUp(link)
}

// request and reply mirror testdata/guest.
type request struct {
	Op   string
	Args []string
	Path string
	MB   int
	N    int
}

type reply struct {
	Out string
	N   int
	Err string
}

// ask sends a request to the guest, which may still be starting.
func (s *slot) ask(timeout time.Duration, req request) (reply, error) {
	var r reply
	err := onThrowawayThread(func() error {
		if err := unix.Setns(int(s.peer.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		deadline := time.Now().Add(timeout)
		conn, err := dial(s.addr+":7777", deadline)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		if err := json.NewEncoder(conn).Encode(req); err != nil {
			return err
		}
		return json.NewDecoder(conn).Decode(&r)
	})
	return r, err
}

func dial(addr string, deadline time.Time) (net.Conn, error) {
	for {
		conn, err := net.DialTimeout("tcp4", addr, time.Until(deadline))
		if err == nil || time.Now().After(deadline) {
			return conn, err
		}
		time.Sleep(time.Millisecond)
	}
}

// must is ask for requests that have to succeed.
func (s *slot) must(t testing.TB, req request) reply {
	t.Helper()
	r, err := s.ask(20*time.Second, req)
	if err != nil {
		t.Fatalf("%s: %v", req.Op, err)
	}
	if r.Err != "" {
		t.Fatalf("%s: %s\n%s", req.Op, r.Err, r.Out)
	}
	return r
}
