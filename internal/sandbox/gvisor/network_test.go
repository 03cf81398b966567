package gvisor

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestNetwork: what the namespace had, the box has: addresses and default
// routes of both families, permanent neighbours (the peer answers no ARP), and
// large segments.
func TestNetwork(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	_, s := startBox(t, r, l.image, testLimits)
	for _, ip := range []string{beyond4, beyond6} {
		addr := s.serveCounter(t, ip)
		if got := s.must(t, request{Op: "send", Path: addr, MB: 8}).Out; got != fmt.Sprint(8<<20) {
			t.Errorf("%s received %s bytes of 8 MiB", addr, got)
		}
	}
}

// serveCounter listens in the peer's namespace and answers each connection with
// the number of bytes it received.
func (s *slot) serveCounter(t *testing.T, ip string) string {
	t.Helper()
	var l net.Listener
	if err := onThrowawayThread(func() error {
		if err := enterNetNS(s.peer); err != nil {
			return err
		}
		var err error
		l, err = net.Listen("tcp", net.JoinHostPort(ip, "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			n, _ := io.Copy(io.Discard, c) // a short count fails the test
			fmt.Fprint(c, n)
			c.Close()
		}
	}()
	return l.Addr().String()
}

// TestHostStaysSilent: once a box has an interface, the host's kernel no longer
// answers for its addresses.
func TestHostStaysSilent(t *testing.T) {
	r := newRuntime(t)
	_, s := prepareBox(t, r, testLimits)
	h, err := netlink.NewHandleAt(netns.NsHandle(s.box.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if addrs, err := h.AddrList(link, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
		t.Errorf("the interface still has %v (%v)", addrs, err)
	}
}
