package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// marker is the UDP port that smuggled packets carry, so that they are known
// when they arrive anywhere.
const marker = 4242

// ICMP is judged by address like anything else, only echo passes, and not as
// fast as one likes.
func TestAttack22ICMPTunnel(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4, eight6}}))
	for _, dst := range []string{eight4, eight6} {
		if got := probe(t, s, policy.ICMP, addr(dst)); got != prohibited {
			t.Errorf("ping %s: %s, want prohibited", dst, got)
		}
	}
	internet := listen(t, internetNS, "net0")
	const messages = 400
	var flood, odd [][]byte
	for i := range messages {
		echo := icmpMessage(8, 0, 0x12, 0x34, byte(i>>8), byte(i), 'f')
		flood = append(flood, ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(s.IP4, addr(one4), unix.IPPROTO_ICMP, nil, echo)))
	}
	for _, kind := range []byte{0, 5, 13, 17} { // echo reply, redirect, timestamp, address mask
		m := icmpMessage(kind, 0, 0x12, 0x34, 0, 0, 'o')
		odd = append(odd, ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(s.IP4, addr(one4), unix.IPPROTO_ICMP, nil, m)))
	}
	sendFrames(t, s, odd...)
	sendFrames(t, s, flood...)
	sendMarker(t, s, internet)
	arrived := func(tag byte) int {
		return len(internet.frames(func(f []byte) bool { return len(f) > 42 && f[23] == unix.IPPROTO_ICMP && f[42] == tag }))
	}
	if got := arrived('o'); got != 0 {
		t.Errorf("%d ICMP messages that are no echo requests got out", got)
	}
	if got := arrived('f'); got < echoBurst*9/10 || got > messages/2 {
		t.Errorf("%d of %d echo requests got out at once, want about %d", got, messages, echoBurst)
	}
}

// sendMarker sends an allowed packet and waits for it at the tap: whatever was
// sent before and passes has arrived by then.
func sendMarker(t *testing.T, s Slot, at *tap) {
	t.Helper()
	src, dst := s.IP4, addr(one4)
	sendFrames(t, s, ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(src, dst, unix.IPPROTO_UDP, nil, datagramTo(src, dst, marker))))
	at.await(t, "the marker", isUDPTo(marker))
}

// forgery is a frame that no honest sandbox sends. Those with a UDP datagram
// carry it to the forged port.
const forged = 6666

func forgeries(s, other Slot) map[string][]byte {
	dst4, dst6 := addr(one4), addr(one6)
	good4 := ip4(s.IP4, dst4, unix.IPPROTO_UDP, nil, datagramTo(s.IP4, dst4, forged))
	good6 := ip6(s.IP6, dst6, unix.IPPROTO_UDP, datagramTo(s.IP6, dst6, forged))
	stranger := net.HardwareAddr{2, 6, 6, 6, 6, 6}
	broadcast := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	extended := func(header byte) []byte { // 8 bytes of an extension header in front of UDP
		return ip6(s.IP6, dst6, header, append([]byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0}, datagramTo(s.IP6, dst6, forged)...))
	}
	return map[string][]byte{
		"source IPv4 of the internet": ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(addr(eight4), dst4, unix.IPPROTO_UDP, nil, datagramTo(addr(eight4), dst4, forged))),
		"source IPv4 of a neighbour":  ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(other.IP4, dst4, unix.IPPROTO_UDP, nil, datagramTo(other.IP4, dst4, forged))),
		"source IPv4 of the gateway":  ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(s.Gateway4, dst4, unix.IPPROTO_UDP, nil, datagramTo(s.Gateway4, dst4, forged))),
		"source IPv6 of the internet": ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, ip6(addr(eight6), dst6, unix.IPPROTO_UDP, datagramTo(addr(eight6), dst6, forged))),
		"source IPv6 of a neighbour":  ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, ip6(other.IP6, dst6, unix.IPPROTO_UDP, datagramTo(other.IP6, dst6, forged))),
		"source IPv6 link-local":      ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, ip6(addr("fe80::1"), dst6, unix.IPPROTO_UDP, datagramTo(addr("fe80::1"), dst6, forged))),
		"source MAC of a stranger":    ether(s.GatewayMAC, stranger, unix.ETH_P_IP, good4),
		"source MAC of a neighbour":   ether(s.GatewayMAC, other.MAC, unix.ETH_P_IPV6, good6),
		"broadcast destination MAC":   ether(broadcast, s.MAC, unix.ETH_P_IP, good4),
		"802.1Q tag":                  ether(s.GatewayMAC, s.MAC, unix.ETH_P_8021Q, append([]byte{0, 1, 8, 0}, good4...)),
		"802.1Q tag, IPv6":            ether(s.GatewayMAC, s.MAC, unix.ETH_P_8021Q, append([]byte{0, 0, 0x86, 0xdd}, good6...)),
		"802.1ad tag":                 ether(s.GatewayMAC, s.MAC, unix.ETH_P_8021AD, append([]byte{0, 1, 8, 0}, good4...)),
		"IPv4 under IPv6's ethertype": ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, good4),
		"unknown ethertype":           ether(s.GatewayMAC, s.MAC, 0x88b5, good4),
		"IPv4 options: record route":  ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(s.IP4, dst4, unix.IPPROTO_UDP, []byte{7, 7, 4, 0, 0, 0, 0, 0}, datagramTo(s.IP4, dst4, forged))),
		"IPv4 options: source route":  ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(s.IP4, dst4, unix.IPPROTO_UDP, []byte{131, 7, 4, 10, 0, 0, 1, 0}, datagramTo(s.IP4, dst4, forged))),
		"IPv6 hop-by-hop options":     ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, extended(unix.IPPROTO_HOPOPTS)),
		"IPv6 routing header":         ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, extended(unix.IPPROTO_ROUTING)),
		"IPv6 destination options":    ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, extended(unix.IPPROTO_DSTOPTS)),
		"ARP request for the gateway": ether(broadcast, s.MAC, unix.ETH_P_ARP, arp(1, s.MAC, s.IP4, s.Gateway4)),
		"ARP reply for a neighbour":   ether(s.GatewayMAC, s.MAC, unix.ETH_P_ARP, arp(2, s.MAC, other.IP4, s.Gateway4)),
		"router advertisement":        ether(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, s.MAC, unix.ETH_P_IPV6, ip6(addr("fe80::1"), addr("ff02::1"), unix.IPPROTO_ICMPV6, icmpMessage(134, 0, make([]byte, 12)...))),
		"neighbour advertisement":     ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, ip6(addr("fe80::1"), s.Gateway6, unix.IPPROTO_ICMPV6, icmpMessage(136, 0, make([]byte, 20)...))),
		"DHCP discover":               ether(broadcast, s.MAC, unix.ETH_P_IP, ip4(addr("0.0.0.0"), addr("255.255.255.255"), unix.IPPROTO_UDP, nil, datagramTo(addr("0.0.0.0"), addr("255.255.255.255"), 67))),
		"truncated to nothing":        ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, []byte{0x45}),
	}
}

func arp(operation byte, mac net.HardwareAddr, sender, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, operation}
	b = append(append(b, mac...), sender.AsSlice()...)
	return append(append(b, make([]byte, 6)...), target.AsSlice()...)
}

func TestAttack24ForgedFrames(t *testing.T) {
	n := open(t)
	s, other := create(t, n, openPolicy(t)), create(t, n, openPolicy(t))
	internet, wire := listen(t, internetNS, "net0"), listen(t, s.NetNS, innerIf)
	for name, frame := range forgeries(s, other) {
		// The namespace's own network stack sends a frame now and then that is
		// dropped as well.
		const times, noise = 20, 5
		before := dropped(t, n, s)
		for range times {
			sendFrames(t, s, frame)
		}
		if got := dropped(t, n, s) - before; got < times || got > times+noise {
			t.Errorf("%s: %d frames were counted as dropped, want %d", name, got, times)
		}
	}
	sendMarker(t, s, internet)
	if got := internet.frames(isUDPTo(forged)); len(got) != 0 {
		t.Errorf("%d forged packets got out: %x", len(got), got)
	}
	if got := wire.frames(func(f []byte) bool { return len(f) > 13 && f[12] == 8 && f[13] == 6 }); len(got) != 0 {
		t.Errorf("the node answers ARP: %x", got)
	}
	expect(t, s, policy.Allow, one4, one6)
	expect(t, other, policy.Allow, one4, one6)
}

// dropped counts the frames of a slot that its guard, or the check of IPv6
// headers behind it, has dropped.
func dropped(t *testing.T, n *Network, s Slot) int {
	t.Helper()
	total := 0
	for _, chain := range []string{fmt.Sprintf("guard_%d", s.Index), "headers6"} {
		for line := range strings.Lines(nft(t, "list", "chain", "netdev", n.table(), chain)) {
			var packets int
			if _, counted, ok := strings.Cut(strings.TrimSpace(line), "counter packets "); ok && strings.Contains(line, "drop") {
				if _, err := fmt.Sscan(counted, &packets); err != nil {
					t.Fatal(err)
				}
				total += packets
			}
		}
	}
	return total
}

// Fragments are put together before they are judged; what is allowed passes
// whole, what is denied does not pass in pieces.
func TestAttack24Fragments(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4, eight6}}))
	internet := listen(t, internetNS, "net0")
	for _, dst := range []string{one4, eight4} {
		whole := ip4(s.IP4, addr(dst), unix.IPPROTO_UDP, nil, append(datagramTo(s.IP4, addr(dst), forged), make([]byte, 12)...))
		binary.BigEndian.PutUint16(whole[24:], 24) // length of the datagram
		binary.BigEndian.PutUint16(whole[26:], 0)  // no checksum
		for _, f := range fragments4(whole, 8) {
			sendFrames(t, s, ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, f))
		}
	}
	sendMarker(t, s, internet)
	// The node puts them together, judges the whole, and sends it on in pieces
	// of the size it came in.
	pieces := func(dst string) int {
		want := addr(dst).As4()
		return len(internet.frames(func(f []byte) bool {
			return len(f) > 34 && binary.BigEndian.Uint16(f[18:]) == fragmentID && [4]byte(f[30:34]) == want
		}))
	}
	if got := pieces(one4); got != 3 {
		t.Errorf("%d pieces to an allowed address, want 3", got)
	}
	if got := pieces(eight4); got != 0 {
		t.Errorf("%d pieces to a denied address got out", got)
	}
}

const fragmentID = 0x4242

// fragments4 cuts an IPv4 packet without options into pieces.
func fragments4(packet []byte, size int) [][]byte {
	var pieces [][]byte
	header, data := packet[:20], packet[20:]
	for offset := 0; offset < len(data); offset += size {
		end := min(offset+size, len(data))
		piece := append(append([]byte{}, header...), data[offset:end]...)
		binary.BigEndian.PutUint16(piece[2:], uint16(len(piece)))
		binary.BigEndian.PutUint16(piece[4:], fragmentID)
		flags := uint16(offset / 8)
		if end < len(data) {
			flags |= 0x2000 // more fragments
		}
		binary.BigEndian.PutUint16(piece[6:], flags)
		binary.BigEndian.PutUint16(piece[10:], 0)
		binary.BigEndian.PutUint16(piece[10:], checksum(piece[:20]))
		pieces = append(pieces, piece)
	}
	return pieces
}

// Protocols that policy does not know do not leave.
func TestAttack24OtherProtocols(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	internet := listen(t, internetNS, "net0")
	for _, proto := range []byte{2, 4, 41, 47, 50, 89, 132, 255} {
		body := append([]byte("0123456789abcdef"), datagramTo(s.IP4, addr(one4), forged)...)
		sendFrames(t, s, ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(s.IP4, addr(one4), proto, nil, body)))
		sendFrames(t, s, ether(s.GatewayMAC, s.MAC, unix.ETH_P_IPV6, ip6(s.IP6, addr(one6), proto, body)))
	}
	sendMarker(t, s, internet)
	if got := internet.frames(isUDPTo(forged)); len(got) != 0 {
		t.Errorf("%d packets got out: %x", len(got), got)
	}
}

// serve echoes on a port of a namespace and tells whether anybody came.
func serve(t *testing.T, ns string) {
	t.Helper()
	err := inNamespace(ns, serveEchoes)
	if err != nil {
		t.Fatal(err)
	}
}

func TestAttack25SandboxToSandbox(t *testing.T) {
	n := open(t)
	p := compile(t, policy.Document{Default: policy.Allow, AllowOut: []string{policy.AllTraffic, "198.18.0.0/16"}})
	s, other := create(t, n, p), create(t, n, p)
	serve(t, other.NetNS)
	expect(t, s, policy.Deny, other.IP4.String(), other.IP6.String(), other.Gateway4.String(), other.Gateway6.String())
}

// Even where the operator has exempted the range that sandboxes live in.
func TestAttack25SandboxToSandboxInExemptRange(t *testing.T) {
	table, err := policy.NewNever(nil, []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd00::/8")})
	if err != nil {
		t.Fatal(err)
	}
	c := config(t)
	c.Never = table
	n := openWith(t, c)
	p, err := policy.Parse(policy.Document{Default: policy.Allow}, policy.Options{Never: table})
	if err != nil {
		t.Fatal(err)
	}
	s, other := create(t, n, p), create(t, n, p)
	serve(t, other.NetNS)
	expect(t, s, policy.Deny, other.IP4.String(), other.IP6.String())
}

// serveNode echoes on all addresses of the node while a test runs.
func serveNode(t *testing.T) {
	t.Helper()
	for _, network := range []string{"tcp", "udp4", "udp6"} {
		if network == "tcp" {
			ln, err := net.Listen(network, fmt.Sprintf(":%d", echoPort))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
			go acceptEchoes(ln)
			continue
		}
		conn, err := net.ListenPacket(network, fmt.Sprintf(":%d", echoPort))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := wantDestination(conn.(*net.UDPConn), network); err != nil {
			t.Fatal(err)
		}
		go sendBack(conn.(*net.UDPConn))
	}
}

func TestAttack26NodeItself(t *testing.T) {
	serveNode(t)
	n := open(t)
	s := create(t, n, compile(t, policy.Document{Default: policy.Allow, AllowOut: []string{policy.AllTraffic}}))
	expect(t, s, policy.Deny, node4.String(), node6.String(), s.Gateway4.String(), s.Gateway6.String())

	// An address that the node got after the table was made.
	if err := exchange("tcp", node4, patience); err != nil {
		t.Fatalf("the node's own server does not answer: %v", err)
	}
	later := addr("8.8.4.4")
	addNodeAddr(t, later)
	expect(t, s, policy.Deny, later.String())
	expect(t, s, policy.Allow, one4, one6)
}

// The node reaches what runs in a sandbox; nobody else does, and a closed slot
// is closed to the node as well.
func TestNodeToSandbox(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{}))
	serve(t, s.NetNS)
	reach := func(a netip.Addr) error { return exchange("tcp", a, moment) }
	for _, a := range []netip.Addr{s.IP4, s.IP6} {
		if err := exchange("tcp", a, patience); err != nil {
			t.Errorf("the node does not reach %v: %v", a, err)
		}
	}
	fromOutside := func(a netip.Addr) (err error) {
		return inNamespace(internetNS, func() error { return reach(a) })
	}
	routeSlotsToNode(t, n)
	for _, a := range []netip.Addr{s.IP4, s.IP6} {
		if err := fromOutside(a); !isTimeout(err) {
			t.Errorf("the internet gets to %v: %v", a, err)
		}
	}
	if err := n.CloseSlot(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{s.IP4, s.IP6} {
		if err := reach(a); !isTimeout(err) {
			t.Errorf("the node gets into a closed slot at %v: %v", a, err)
		}
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestAttack28TrafficBeforeThePolicy(t *testing.T) {
	n := open(t)
	s, err := n.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s.NetNS)
	wire, internet := listen(t, s.NetNS, innerIf), listen(t, internetNS, "net0")
	expectSilence(t, s, one4, one6, node4.String(), s.Gateway4.String(), s.Gateway6.String(), "10.0.0.1")
	for _, a := range []netip.Addr{s.IP4, s.IP6} {
		if err := exchange("tcp", a, moment); !isTimeout(err) {
			t.Errorf("the node gets in at %v: %v", a, err)
		}
	}
	all := func([]byte) bool { return true }
	if got := wire.frames(all); len(got) != 0 {
		t.Errorf("%d frames came into a closed slot: %x", len(got), got)
	}
	// Servers of earlier tests may still send, and the node resets that.
	notReset := func(f []byte) bool { return len(f) < 48 || f[23] != unix.IPPROTO_TCP || f[47]&4 == 0 }
	if got := internet.frames(notReset); len(got) != 0 {
		t.Errorf("%d frames came out of a closed slot: %x", len(got), got)
	}
	apply(t, n, s, openPolicy(t))
	expect(t, s, policy.Allow, one4, one6)
	if err := n.CloseSlot(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	expectSilence(t, s, one4, one6)
}

// When the server dies its rules stay, and so do flows.
func TestAttack29ServerDies(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}))
	closed, err := n.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	conn := dialFrom(t, s, "tcp", one4)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, s, policy.Deny, eight4, "10.0.0.1")
	expect(t, s, policy.Allow, one4, one6)
	expectSilence(t, closed, one4)
	if err := echoOnce(conn); err != nil {
		t.Errorf("the connection died with the server: %v", err)
	}
	reopen(t, n)
}

// reopen gives a closed Network back what Close let go, so that the test can
// clean up.
func reopen(t *testing.T, n *Network) {
	t.Helper()
	again, err := Open(config(t))
	if err != nil {
		t.Fatal(err)
	}
	n.rules, n.tracker, n.barrier, n.lock, n.adopted = again.rules, again.tracker, again.barrier, again.lock, again.adopted
}

// A firewall that is reloaded begins with "flush ruleset". That must not open
// a sandbox.
func TestForeignFlushDoesNotOpen(t *testing.T) {
	n := open(t)
	if n.rules.flags == 0 {
		t.Fatal("this kernel cannot protect tables; the test needs Linux 6.9")
	}
	s := create(t, n, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}))
	nft(t, "flush", "ruleset")
	expect(t, s, policy.Deny, eight4, "10.0.0.1", node4.String())
	expect(t, s, policy.Allow, one4)
}

// dialFrom opens a connection from a slot to the echo server at an address; it
// is closed when the test ends.
func dialFrom(t *testing.T, s Slot, network, dst string) net.Conn {
	t.Helper()
	var conn net.Conn
	err := inNamespace(s.NetNS, func() (err error) {
		conn, err = net.DialTimeout(network, netip.AddrPortFrom(addr(dst), echoPort).String(), patience)
		return err
	})
	if err != nil {
		t.Fatalf("dial %s %s: %v", network, dst, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := echoOnce(conn); err != nil {
		t.Fatalf("%s %s does not answer: %v", network, dst, err)
	}
	return conn
}

// One sandbox that begins flows without end uses up its own share, and not what
// all of the machine share.
func TestAttack27OneSandboxBeginsFlowsWithoutEnd(t *testing.T) {
	n := open(t)
	s, neighbour := create(t, n, openPolicy(t)), create(t, n, openPolicy(t))
	w := watch(t, n)
	const tried = MaxFlows * 3 / 2
	for port := uint16(1024); port < 1024+tried; {
		var frames [][]byte
		for range 256 {
			datagram := datagramTo(s.IP4, addr(one4), marker)
			binary.BigEndian.PutUint16(datagram, port)
			binary.BigEndian.PutUint16(datagram[6:], 0) // no checksum
			frames = append(frames, ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(s.IP4, addr(one4), unix.IPPROTO_UDP, nil, datagram)))
			port++
		}
		sendFrames(t, s, frames...)
	}
	w.await(t, "the limit", func(e Event) bool { return e.Slot == s.Index && e.Outcome == RefusedLimit })
	if count := countFlows(t, n, s); count > MaxFlows || count < MaxFlows*9/10 {
		t.Errorf("the sandbox has %d flows after %d tries, want %d", count, tried, MaxFlows)
	}
	if got := probe(t, s, policy.TCP, addr(one4)); got != reset {
		t.Errorf("one more flow: %s, want a reset", got)
	}
	expect(t, neighbour, policy.Allow, one4, one6)
	apply(t, n, s, nil) // ends them
	apply(t, n, s, openPolicy(t))
	expect(t, s, policy.Allow, one4, one6)
}
