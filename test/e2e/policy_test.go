package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// atOnce bounds how long a refusal may take, in milliseconds. It is generous:
// a silent drop shows after two seconds.
const atOnce = 1000

// targets are all ways to reach an address: its echo server by TCP and UDP, and
// the machine itself by ICMP.
func targets(addrs ...string) (list []string) {
	for _, addr := range addrs {
		echo := netip.AddrPortFrom(netip.MustParseAddr(addr), lab.EchoPort)
		list = append(list, "tcp:"+echo.String(), "udp:"+echo.String(), "icmp:"+addr)
	}
	return list
}

// expect probes both lists of addresses, in one go. It expects answers from the
// first. From the second it expects a refusal at once, and that not one packet
// leaves the node: TCP is reset, all else is answered with ICMP's
// "administratively prohibited".
func expect(t *testing.T, s *harness.Server, box *harness.Box, allowed, denied []string) {
	t.Helper()
	left, wire := len(s.Lab.Packets()), len(s.Wire.Packets())
	found := probe(t, box, slices.Concat(targets(allowed...), targets(denied...))...)
	for _, target := range targets(allowed...) {
		if o := found[target]; o.Result != "answered" {
			t.Errorf("allowed %s: %s after %d ms, %s", target, o.Result, o.Millis, o.Detail)
		}
	}
	for _, target := range targets(denied...) {
		o := found[target]
		switch proto, address, _ := strings.Cut(target, ":"); {
		case o.Result == "answered":
			t.Errorf("denied %s: answered", target)
		case proto == "tcp" && (o.Result != "refused" || o.Millis > atOnce):
			t.Errorf("denied %s: %s after %d ms (%s), want it refused at once", target, o.Result, o.Millis, o.Detail)
		case proto != "tcp" && !slices.ContainsFunc(s.Wire.Packets()[wire:], prohibits(address)):
			t.Errorf("denied %s: no ICMP error says so", target)
		}
	}
	for _, p := range s.Lab.Packets()[left:] {
		if slices.Contains(denied, p.To.String()) {
			t.Errorf("left the node: %s", p)
		}
	}
}

// prohibits recognises the ICMP error about a denied address or address and
// port.
func prohibits(target string) func(lab.Packet) bool {
	return func(p lab.Packet) bool {
		about := p.About.String()
		if p.About.Port() == 0 {
			about = p.About.Addr().String()
		}
		return about == target &&
			(p.Proto == "icmp" && p.Type == 3 && p.Code == 13 || p.Proto == "icmp6" && p.Type == 1 && p.Code == 1)
	}
}

func TestPolicyOnTheWire(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	off := false
	for _, c := range []struct {
		name            string
		spec            api.NewSandbox
		allowed, denied []string
	}{
		{
			"open by default", api.NewSandbox{},
			[]string{"1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2001:4860:4860::8888"}, nil,
		},
		{
			"deny all", api.NewSandbox{Network: network(nil, everything)},
			nil, []string{"1.1.1.1", "8.8.8.8", "2606:4700:4700::1111"},
		},
		{
			"no internet access", api.NewSandbox{AllowInternetAccess: &off},
			nil, []string{"1.1.1.1", "2606:4700:4700::1111"},
		},
		{
			"allow beats no internet access", api.NewSandbox{AllowInternetAccess: &off, Network: network([]string{"93.184.216.0/24"}, nil)},
			[]string{"93.184.216.34", "93.184.216.35"}, []string{"1.1.1.1", "2606:4700:4700::1111"},
		},
		{
			"allow beats deny", api.NewSandbox{Network: network([]string{"1.1.1.1", "2606:4700:4700::1111"}, append(everything, "1.1.1.0/24"))},
			[]string{"1.1.1.1", "2606:4700:4700::1111"}, []string{"8.8.8.8", "93.184.216.34", "2001:4860:4860::8888"},
		},
		{
			"deny some", api.NewSandbox{Network: network(nil, []string{"8.8.8.8", "93.184.216.0/24", "2606:4700::/32"})},
			[]string{"1.1.1.1", "8.8.4.4", "2001:4860:4860::8888"}, []string{"8.8.8.8", "93.184.216.34", "2606:4700:4700::1111"},
		},
		{
			"a hole in a denied range", api.NewSandbox{Network: network([]string{"93.184.216.35"}, []string{"93.184.0.0/16"})},
			[]string{"93.184.216.35", "1.1.1.1"}, []string{"93.184.216.34"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			box := withProber(t, s, c.spec)
			expect(t, s, box, c.allowed, c.denied)
			if err := s.Client().Kill(t.Context(), box.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNeverReachable allows everything that can be written down and expects
// that it opens none of what no sandbox may reach.
func TestNeverReachable(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	other := withProber(t, s, api.NewSandbox{})
	other.Start(t, prober+" serve 9000")
	s.Wait("the other sandbox's server answers", func() bool {
		return probe(t, other, "tcp:127.0.0.1:9000")["tcp:127.0.0.1:9000"].Result != "refused"
	})
	neighbours := strings.Fields(other.MustRun(t, prober+" addrs"))
	if len(neighbours) != 2 {
		t.Fatalf("the other sandbox has the addresses %v, want one of each family", neighbours)
	}

	box := withProber(t, s, api.NewSandbox{Network: network([]string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "198.18.0.0/15", "198.51.100.2",
		"fd00::/8", "2001:db8:1::2", "224.0.0.0/4",
	}, nil)})
	before := len(s.Lab.Packets())
	var list []string
	for _, neighbour := range neighbours {
		list = append(list, "tcp:"+netip.AddrPortFrom(netip.MustParseAddr(neighbour), 9000).String(), "icmp:"+neighbour)
		list = append(list, gatewayTargets(t, neighbour)...)
	}
	for _, addr := range []string{
		lab.NodeIP4.String(), lab.NodeIP6.String(), // the node, where the server itself listens on 80 and 443
		"169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "192.0.0.1", "198.18.0.1", "240.0.0.1",
		"fd00:ec2::254", "fc00::1", "64:ff9b::101:101", "2002:101:101::1", "::ffff:1.1.1.1",
	} {
		list = append(list, "tcp:"+netip.AddrPortFrom(netip.MustParseAddr(addr), 80).String())
	}
	list = append(list, "udp:169.254.169.254:53", "udp:224.0.0.251:5353", "udp:255.255.255.255:67", "udp:[ff02::1]:5353", "icmp:169.254.169.254")
	for target, o := range probe(t, box, list...) {
		if target == "tcp:[::ffff:1.1.1.1]:80" {
			continue // the sandbox's own system makes plain IPv4 of it; see below
		}
		if o.Result == "answered" {
			t.Errorf("reached %s", target)
		}
		if proto, _, _ := strings.Cut(target, ":"); proto == "tcp" && o.Result == "silent" {
			t.Errorf("%s was not refused but dropped: %+v", target, o)
		}
	}
	for _, p := range s.Lab.Packets()[before:] {
		if p.To != netip.MustParseAddr("1.1.1.1") {
			t.Errorf("left the node: %s", p)
		}
	}
}

// gatewayTargets are the doors of the node that a sandbox is nearest to: its
// own gateway is the neighbour address next to its own.
func gatewayTargets(t *testing.T, own string) (list []string) {
	t.Helper()
	addr := netip.MustParseAddr(own)
	for _, gateway := range []netip.Addr{addr.Prev(), addr.Next()} {
		for _, port := range []uint16{22, 53, 80, 443, 6628} {
			list = append(list, "tcp:"+netip.AddrPortFrom(gateway, port).String())
		}
	}
	return list
}

// TestUpdateCutsExactlyWhatItDenies changes the policy under two connections
// and expects the denied one to break at once and the allowed one to live.
func TestUpdateCutsExactlyWhatItDenies(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, api.NewSandbox{})
	kept, cut := "1.1.1.1:7", "8.8.8.8:7"
	kept6, cut6 := "[2606:4700:4700::1111]:7", "[2001:4860:4860::8888]:7"
	held := box.Start(t, fmt.Sprintf("%s hold %s %s %s %s > outcomes", prober, kept, cut, kept6, cut6))
	s.Wait("all connections are up", func() bool {
		return strings.Count(box.MustRun(t, "ls"), "held-") == 4
	})
	began := time.Now()
	err := s.Client().SetNetwork(t.Context(), box.ID, api.NetworkUpdate{
		Network: *network([]string{"1.1.1.1", "2606:4700:4700::1111"}, everything),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the update took %s", time.Since(began))
	// The kept connections go on for as long as the test wants to look at them.
	expect(t, s, box, []string{"1.1.1.1", "2606:4700:4700::1111"}, []string{"8.8.8.8", "2001:4860:4860::8888"})
	box.MustRun(t, "touch stop")
	if exit, err := held.Wait(); err != nil || exit.Code != 0 {
		t.Fatalf("the prober ended with %+v, %v", exit, err)
	}
	found := outcomes(t, box.MustRun(t, "cat outcomes"))
	for _, address := range []string{kept, kept6} {
		if o := found[address]; o.Result != "answered" {
			t.Errorf("the allowed connection to %s broke: %+v", address, o)
		}
	}
	for _, address := range []string{cut, cut6} {
		if o := found[address]; o.Result == "answered" {
			t.Errorf("the denied connection to %s lived on: %+v", address, o)
		}
	}
}

// TestBadUpdateChangesNothing expects a refused document to leave the old one
// in force and on show.
func TestBadUpdateChangesNothing(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, api.NewSandbox{Network: network([]string{"1.1.1.1"}, everything)})
	for _, body := range []string{
		`{"allowOut":["1.1.1.1/33"]}`, `{"denyOut":["example.com"]}`, `{"allowOut":["example.com"]}`, `{"allowOut":["https://example.com"],"denyOut":["0.0.0.0/0"]}`,
		`{"allowOut":"1.1.1.1"}`, `{"allowOut":[1]}`, `[]`, `{`, `{"allowOut":["2606:4700::/129"]}`,
	} {
		if a := s.Request(t, "PUT", "/sandboxes/"+box.ID+"/network", body); a.Status != 400 {
			t.Errorf("PUT %s: status %d, want 400: %s", body, a.Status, a.Body)
		}
	}
	detail, err := s.Client().Sandbox(t.Context(), box.ID)
	if err != nil {
		t.Fatal(err)
	}
	if detail.Network == nil || !slices.Equal(detail.Network.AllowOut, []string{"1.1.1.1"}) || !slices.Equal(detail.Network.DenyOut, everything) {
		t.Errorf("GET shows %+v", detail.Network)
	}
	expect(t, s, box, []string{"1.1.1.1"}, []string{"8.8.8.8"})
}

// TestAllowRangeOpensOnlyForPolicies exempts a private range and expects that a
// policy is still needed to reach it.
func TestAllowRangeOpensOnlyForPolicies(t *testing.T) {
	private := netip.MustParseAddr("10.20.30.40")
	s := harness.Start(t, harness.Options{
		Args: []string{"--allow-range", "10.20.30.0/24"},
		Lab:  lab.Config{Addresses: []netip.Addr{private}},
	})
	open := withProber(t, s, api.NewSandbox{Network: network([]string{private.String()}, everything)})
	expect(t, s, open, []string{private.String()}, []string{"1.1.1.1"})
	closed := withProber(t, s, api.NewSandbox{Network: network(nil, everything)})
	expect(t, s, closed, nil, []string{private.String()})
}
