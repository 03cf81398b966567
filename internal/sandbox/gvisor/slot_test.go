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

const slotMAC, peerMAC = "02:00:00:00:00:02", "02:00:00:00:00:01"

func newSlot(t testing.TB) *slot {
	t.Helper()
	s := &slot{addr: "10.77.0.2"}
	for _, ns := range []**os.File{&s.box, &s.peer} {
		f, err := newNetNS()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		*ns = f
	}
	if err := s.wire(); err != nil {
		t.Fatal(err)
	}
	return s
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
	if err := configure(peer, "out", "10.77.0.1/30", "10.77.0.2", mac(slotMAC)); err != nil {
		return err
	}
	return configure(box, "eth0", "10.77.0.2/30", "10.77.0.1", mac(peerMAC))
}

// configure gives an interface its address and its neighbour, and sets it up.
func configure(h *netlink.Handle, name, addr, neighbour string, mac net.HardwareAddr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(link, a); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	return h.NeighAdd(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP(neighbour), HardwareAddr: mac, Family: unix.AF_INET,
	})
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
