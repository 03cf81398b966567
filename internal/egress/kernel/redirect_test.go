package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Web sites and name servers are redirected, each flow with the address of its
// sandbox and the destination it meant. Nothing else is.
func TestNamesAreRedirected(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	s, other := create(t, n, names(t)), create(t, n, names(t))
	for _, s := range []Slot{s, other} {
		for _, host := range []string{example4, example6, policy.Synthetic().Addr().Next().String()} {
			for _, port := range []uint16{80, 443} {
				wantVisit(t, s, "tcp", host, port, byProxy(s, host, port))
			}
		}
		for _, host := range []string{eight4, eight6} {
			source := s.ownAddr(addr(host))
			wantVisit(t, s, "udp", host, 53, fmt.Sprintf("resolver %v", source))
			wantVisit(t, s, "tcp", host, 53, fmt.Sprintf("resolver %v %v", source, netip.AddrPortFrom(addr(host), 53)))
		}
	}
	for _, host := range []string{example4, example6, policy.Synthetic().Addr().Next().String()} {
		wantVisit(t, s, "tcp", host, 22, string(reset))
		wantVisit(t, s, "tcp", host, 8080, string(reset))
		wantVisit(t, s, "udp", host, 80, string(prohibited))
	}
	expect(t, s, policy.Deny, example4, example6)
}

// QUIC is refused at once, so that clients fall back to TCP.
func TestAttack21QUICToNameOnlyHost(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	s := create(t, n, names(t))
	for _, host := range []string{example4, example6} {
		wantVisit(t, s, "udp", host, 443, string(prohibited))
	}
}

// What is allowed by address does not pass the proxy, also not for DNS.
func TestAllowedAddressesGoDirectly(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	serveInternet(t, 443)
	serveInternet(t, 53)
	p := names(t, example4, example6, eight4)
	s := create(t, n, p)
	for _, host := range []string{example4, example6} {
		wantVisitInternet(t, s, host, 443)
	}
	wantVisitInternet(t, s, eight4, 53)
	wantVisit(t, s, "tcp", one4, 443, byProxy(s, one4, 443))
	expect(t, s, policy.Allow, example4, example6)
}

// A policy that allows what it does not name goes on doing so when it has names.
func TestOpenPolicyWithNamesStaysOpen(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	serveInternet(t, 443)
	s := create(t, n, compile(t, policy.Document{
		Default: policy.Allow, AllowOut: []string{"example.com"}, Rules: mention(), DenyOut: []string{eight4},
	}))
	expect(t, s, policy.Allow, one4, one6)
	expect(t, s, policy.Deny, eight4)
	wantVisitInternet(t, s, one4, 443)
	wantVisit(t, s, "tcp", eight4, 443, byProxy(s, eight4, 443)) // the name may be an allowed one
}

// The table of what is never reachable beats redirection as it beats everything.
func TestAttack14NeverReachableIsNotRedirected(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	s := create(t, n, names(t))
	for _, host := range []string{
		"10.0.0.1", "169.254.169.254", "198.19.128.1", "198.18.0.1", node4.String(),
		"fd00:ec2::254", "64:ff9b::101:101", node6.String(),
	} {
		for _, port := range []uint16{80, 443, 53} {
			wantVisit(t, s, "tcp", host, port, string(reset))
		}
		wantVisit(t, s, "udp", host, 53, string(prohibited))
	}
	synthetic := policy.Synthetic().Addr().Next().String()
	wantVisit(t, s, "udp", synthetic, 53, string(prohibited))
	wantVisit(t, s, "tcp", synthetic, 53, string(reset))
}

// The doors themselves are like any other address of the node.
func TestAttack26Doors(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	for name, p := range map[string]*policy.Policy{
		"names": names(t),
		"open":  openPolicy(t),
	} {
		t.Run(name, func(t *testing.T) {
			s := create(t, n, p)
			for _, a := range []netip.Addr{n.doors.Addr4, n.doors.Addr6} {
				for _, port := range []uint16{n.doors.Proxy, n.doors.Resolver, 80, 443, 53} {
					wantVisit(t, s, "tcp", a.String(), port, string(reset))
				}
				wantVisit(t, s, "udp", a.String(), n.doors.Resolver, string(prohibited))
				wantVisit(t, s, "udp", a.String(), 53, string(prohibited))
			}
		})
	}
	t.Run("from outside", func(t *testing.T) {
		for gateway, a := range map[netip.Addr]netip.Addr{node4: n.doors.Addr4, node6: n.doors.Addr6} {
			routeToNode(t, netip.PrefixFrom(a, a.BitLen()), gateway)
			var err error
			if e := inNamespace(internetNS, func() error {
				var conn net.Conn
				if conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(a, n.doors.Proxy).String(), moment); err == nil {
					_ = conn.Close()
				}
				return nil
			}); e != nil {
				t.Fatal(e)
			}
			if !isTimeout(err) {
				t.Errorf("%v from the internet: %v, want silence", a, err)
			}
		}
	})
}

// Nobody listens behind the doors: everything redirected is refused at once,
// nothing opens, and what needs no proxy goes on.
func TestAttack29ProxyIsDead(t *testing.T) {
	n := open(t)
	closeDoors := openDoors(t, n)
	s := create(t, n, names(t, one4, one6))
	direct := dialFrom(t, s, "tcp", one4)
	_, carried := visit(t, s, "tcp", example4, 443)
	closeDoors()
	for _, host := range []string{example4, example6} {
		for _, port := range []uint16{80, 443, 53} {
			wantVisit(t, s, "tcp", host, port, string(reset))
		}
		wantVisit(t, s, "udp", host, 53, string(reset)) // port unreachable
		wantVisit(t, s, "tcp", host, 22, string(reset))
	}
	if err := echoOnce(direct); err != nil {
		t.Errorf("a direct connection died: %v", err)
	}
	expect(t, s, policy.Allow, one4, one6)
	openDoors(t, n) // and the next proxy serves
	wantVisit(t, s, "tcp", example4, 443, byProxy(s, example4, 443))
	if err := carried.Close(); err != nil {
		t.Error(err)
	}
}

// What the proxy carries is the proxy's to judge: it lives on for as long as
// there is a policy, whichever. What begins under a new policy obeys that one.
func TestRedirectionFollowsThePolicy(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	serveInternet(t, 443)
	s := create(t, n, openPolicy(t))
	_, direct := visit(t, s, "tcp", one4, 443)
	if got := apply(t, n, s, names(t)); got.Cut != 1 {
		t.Errorf("%d flows were cut, want the direct one", got.Cut)
	}
	if err := echoOnce(direct); err == nil {
		t.Error("a direct connection lives on")
	}
	_, carried := visit(t, s, "tcp", one4, 443)
	apply(t, n, s, names(t, one4))
	apply(t, n, s, openPolicy(t))
	if err := echoOnce(carried); err != nil {
		t.Errorf("the proxy's connection died: %v", err)
	}
	wantVisitInternet(t, s, one4, 443)
	apply(t, n, s, nil)
	if err := echo(carried, moment); err == nil {
		t.Error("the proxy's connection lives on in a closed slot")
	}
	if count := countFlows(t, n, s); count != 0 {
		t.Errorf("a closed slot has %d flows", count)
	}
	if who, err := tryProbe(s, policy.TCP, addr(example4), moment); who != silence {
		t.Errorf("from a closed slot: %s, %v", who, err)
	}
}

// A restarted server finds everything as it was, also the connections that the
// proxy carried, if it is another process.
func TestAdoptKeepsRedirection(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	s := create(t, n, names(t))
	_, carried := visit(t, s, "tcp", example4, 443)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	wantVisit(t, s, "tcp", example6, 80, byProxy(s, example6, 80)) // nobody is at home, the rules are
	reopen(t, n)
	n.slots = map[int]*state{}
	wantVisit(t, s, "tcp", example6, 80, byProxy(s, example6, 80))
	if err := n.Adopt(context.Background(), []Tenant{{Slot: s, Policy: names(t)}}); err != nil {
		t.Fatal(err)
	}
	if err := echoOnce(carried); err != nil {
		t.Errorf("a connection of the proxy died: %v", err)
	}
	wantVisit(t, s, "tcp", example4, 443, byProxy(s, example4, 443))
	wantVisit(t, s, "tcp", example4, 22, string(reset))
}

// When a slot is gone, so is what it had through the doors.
func TestDestroyEndsRedirectedFlows(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	s := create(t, n, names(t))
	visit(t, s, "tcp", example4, 443)
	visit(t, s, "udp", eight4, 53)
	if count := countFlows(t, n, s); count != 2 {
		t.Fatalf("%d flows, want 2", count)
	}
	if err := n.Destroy(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if count := countFlows(t, n, s); count != 0 {
		t.Errorf("%d flows are left", count)
	}
}

// A rule has to see every request, also to where addresses are allowed.
func TestCarryAllWeb(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	serveInternet(t, 443)
	p := compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}})
	s := create(t, n, p)
	old := wantVisitInternet(t, s, one4, 443)
	other := dialFrom(t, s, "tcp", one4)
	p = compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}, Rules: strict()})
	expectRefusedAtOnce(t, n, s, p, wantVisitInternet(t, s, one6, 443))
	if got := apply(t, n, s, p); got.Cut == 0 {
		t.Errorf("no flow was cut, want those that no rule sees")
	}
	if err := echoOnce(old); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection that no rule sees: %v, want a reset", err)
	}
	if err := echoOnce(other); err != nil {
		t.Errorf("a connection that is no rule's died: %v", err)
	}
	for _, host := range []string{one4, one6, eight4} {
		wantVisit(t, s, "tcp", host, 443, byProxy(s, host, 443))
		wantVisit(t, s, "tcp", host, 80, byProxy(s, host, 80))
	}
	wantVisit(t, s, "udp", eight4, 53, fmt.Sprintf("resolver %v", s.IP4))
	wantVisit(t, s, "tcp", "10.0.0.1", 443, string(reset))
	expect(t, s, policy.Allow, one4, one6) // other ports
	expect(t, s, policy.Deny, eight4)
}

// expectRefusedAtOnce puts the rules of a policy in force and nothing else: they
// refuse packets of a direct flow although the tracker still knows it.
func expectRefusedAtOnce(t *testing.T, n *Network, s Slot, p *policy.Policy, old net.Conn) {
	t.Helper()
	must(t, n.enforce(s, n.slots[s.Index], p))
	if err := echoOnce(old); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("before it is cut: %v, want a reset", err)
	}
}

// There is no way around the upstream proxy for any connection.
func TestCarryTCP(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	p := compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}})
	s := create(t, n, p)
	old := dialFrom(t, s, "tcp", one4)
	p = compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}, EgressProxy: upstream()})
	expectRefusedAtOnce(t, n, s, p, dialFrom(t, s, "tcp", one6))
	apply(t, n, s, p)
	if err := echoOnce(old); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection past the proxy: %v, want a reset", err)
	}
	for _, host := range []string{one4, one6, eight4} {
		for _, port := range []uint16{22, 80, 443, 8080} {
			wantVisit(t, s, "tcp", host, port, byProxy(s, host, port))
		}
	}
	wantVisit(t, s, "tcp", one4, 53, byProxy(s, one4, 53)) // allowed by address
	wantVisit(t, s, "tcp", eight4, 53, fmt.Sprintf("resolver %v %s:53", s.IP4, eight4))
	wantVisit(t, s, "udp", eight4, 53, fmt.Sprintf("resolver %v", s.IP4))
	wantVisit(t, s, "tcp", "10.0.0.1", 22, string(reset))
	for dst, want := range map[string]outcome{one4: reached, eight4: prohibited} {
		for _, proto := range []policy.Proto{policy.UDP, policy.ICMP} {
			if got := probe(t, s, proto, addr(dst)); got != want {
				t.Errorf("%v to %s: %s, want %s", proto, dst, got, want)
			}
		}
	}
}

// A flow that a policy wants carried may not live on directly.
func TestMustCarry(t *testing.T) {
	flow := func(proto policy.Proto, port uint16) policy.Flow {
		return policy.Flow{Proto: proto, Dst: netip.AddrPortFrom(addr(one4), port)}
	}
	for c, want := range map[policy.Carry][3]bool{
		policy.CarryNone: {}, policy.CarryWeb: {}, policy.CarryAllWeb: {true, false, false}, policy.CarryTCP: {true, true, false},
	} {
		got := [3]bool{mustCarry(c, flow(policy.TCP, 443)), mustCarry(c, flow(policy.TCP, 22)), mustCarry(c, flow(policy.UDP, 443))}
		if got != want {
			t.Errorf("%v: must TCP 443, TCP 22, UDP 443 be carried? %v, want %v", c, got, want)
		}
	}
}
