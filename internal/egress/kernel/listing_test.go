package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

// The text tells of the same flows as netlink, and names each so that it can be
// ended: of all protocols and both families, direct, redirected and from outside.
func TestListingAgreesWithNetlink(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	s, other := create(t, n, names(t)), create(t, n, openPolicy(t))
	serve(t, s.NetNS)
	wantVisit(t, s, "tcp", example4, 443, byProxy(s, example4, 443))
	for _, from := range []Slot{s, other} {
		apply(t, n, from, openPolicy(t))
		expect(t, from, policy.Allow, one4, one6)
		dialFrom(t, from, "tcp", eight4)
		dialFrom(t, from, "udp", eight6)
	}
	outside, err := net.Dial("tcp", netip.AddrPortFrom(s.IP4, echoPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	byNetlink, err := n.tracker.list(func(c tracked) bool { return c.src == s.IP4 || c.src == s.IP6 || c.dst == s.IP4 })
	if err != nil {
		t.Fatal(err)
	}
	byText, _, err := n.tracker.listing.of(s)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := described(byText), described(byNetlink); !slices.Equal(got, want) || len(want) < 10 {
		t.Errorf("the text has\n%q, netlink\n%q", got, want)
	}
	if removed, err := n.tracker.remove(byText); err != nil || removed != len(byText) {
		t.Errorf("%d of %d flows could be ended: %v", removed, len(byText), err)
	}
	if left := countFlows(t, n, s); left != 0 {
		t.Errorf("%d flows are left", left)
	}
	if countFlows(t, n, other) < 8 {
		t.Error("the neighbour lost flows")
	}
}

func described(flows []tracked) (texts []string) {
	for _, c := range flows {
		texts = append(texts, fmt.Sprint(c.src, c.dst, c.proto, c.port, c.family))
	}
	slices.SortFunc(texts, cmp.Compare)
	return texts
}

// A text of several pages is not believed when it shows nothing, and more flows
// than it is good for are found by netlink.
func TestManyFlowsAreAllEnded(t *testing.T) {
	n := open(t)
	s, other := create(t, n, openPolicy(t)), create(t, n, openPolicy(t))
	denied := compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{"9.9.0.0/16"}})
	for _, flows := range []int{300, 7000} { // a page has room for 20, the longest listing for 5,000
		for _, from := range []Slot{s, other} {
			sendEach(t, from, flows)
		}
		_, whole, err := n.tracker.listing.of(s)
		if tooMany := flows > 5000; whole || errors.Is(err, errNoListing) != tooMany {
			t.Errorf("the text of %d flows is whole: %v, %v", flows, whole, err)
		}
		if got := apply(t, n, s, denied); got.Cut != flows {
			t.Errorf("%d flows were cut, want %d", got.Cut, flows)
		}
		if got := countFlows(t, n, other); got != flows {
			t.Errorf("the neighbour has %d flows, want %d", got, flows)
		}
		apply(t, n, other, denied)
		apply(t, n, s, openPolicy(t))
		apply(t, n, other, openPolicy(t))
	}
}

// sendEach begins flows from a slot to as many addresses.
func sendEach(t *testing.T, s Slot, flows int) {
	t.Helper()
	err := inNamespace(s.NetNS, func() error {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{})
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range flows {
			dst := netip.AddrFrom4([4]byte{9, 9, byte(i / 250), byte(i % 250)})
			if _, err := conn.WriteToUDPAddrPort([]byte{1}, netip.AddrPortFrom(dst, marker)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnreadableListing(t *testing.T) {
	for name, line := range map[string]string{
		"protocol without ports": "ipv4     2 unknown  47 29 src=198.18.0.3 dst=1.1.1.1 src=1.1.1.1 dst=203.0.113.10 mark=0 zone=0 use=2",
		"one direction":          "ipv4     2 udp      17 29 src=198.18.0.3 dst=1.1.1.1 sport=1 dport=2 mark=0 zone=0 use=2",
		"address":                "ipv4     2 udp      17 29 src=198.18.0 dst=1.1.1.1 sport=1 dport=2 src=1.1.1.1 dst=203.0.113.10 sport=2 dport=1 use=2",
		"port":                   "ipv4     2 udp      17 29 src=198.18.0.3 dst=1.1.1.1 sport=1 dport=65536 src=1.1.1.1 dst=203.0.113.10 sport=2 dport=1 use=2",
		"protocol":               "ipv4     2 udp      256 29 src=198.18.0.3 dst=1.1.1.1 sport=1 dport=2 src=1.1.1.1 dst=203.0.113.10 sport=2 dport=1 use=2",
		"nothing":                "",
	} {
		if c, err := parseListed(line); err == nil {
			t.Errorf("%s: %q was read as %+v", name, line, c)
		}
	}
}
