package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// A tightened policy ends the flows it denies, at once and on both sides, and
// leaves the others alone.
func TestAttack30TightenedPolicyOldConnection(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	type held struct {
		name string
		conn net.Conn
		dies bool
	}
	var flows []held
	for _, network := range []string{"tcp", "udp"} {
		for dst, dies := range map[string]bool{one4: false, one6: false, eight4: true, eight6: true} {
			flows = append(flows, held{network + " to " + dst, dialFrom(t, s, network, dst), dies})
		}
	}
	tight := compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4, eight6}})
	if got := apply(t, n, s, tight); got.Cut != 4 {
		t.Errorf("%d flows were cut, want 4", got.Cut)
	}
	for _, f := range flows {
		err := echoOnce(f.conn)
		switch {
		case !f.dies && err != nil:
			t.Errorf("%s died: %v", f.name, err)
		case f.dies && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EHOSTUNREACH):
			t.Errorf("%s lives on, or hangs: %v", f.name, err)
		}
	}
	if got := apply(t, n, s, tight); got.Cut != 0 {
		t.Errorf("the same policy again cut %d flows", got.Cut)
	}
	if got := apply(t, n, s, nil); got.Cut != 4 {
		t.Errorf("closing cut %d flows, want 4", got.Cut)
	}
	for _, f := range flows {
		if !f.dies && echoOnce(f.conn) == nil {
			t.Errorf("%s lives on in a closed slot", f.name)
		}
	}
}

// What a denied peer keeps sending does not arrive either.
func TestAttack30DeniedPeerKeepsSending(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	var peer *net.UDPConn
	err := inNamespace(internetNS, func() (err error) {
		peer, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(eight4), Port: marker})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	var conn net.Conn
	err = inNamespace(s.NetNS, func() (err error) {
		conn, err = net.Dial("udp4", netip.AddrPortFrom(addr(eight4), marker).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	_, from, err := peer.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	receive := func() error {
		if _, err := peer.WriteToUDPAddrPort([]byte("secret"), from); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(moment)); err != nil {
			return err
		}
		_, err := conn.Read(buf)
		return err
	}
	if err := receive(); err != nil {
		t.Fatalf("before the update: %v", err)
	}
	apply(t, n, s, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}))
	if err := receive(); !isTimeout(err) {
		t.Errorf("a datagram of a denied peer arrived: %v", err)
	}
}

// A slot's number, and with it its addresses, gets a new tenant.
func TestAttack31SlotReuse(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	serve(t, s.NetNS)
	dialFrom(t, s, "tcp", one4)
	dialFrom(t, s, "udp", one4)
	dialFrom(t, s, "udp", one6)
	fromNode, err := net.Dial("tcp", netip.AddrPortFrom(s.IP4, echoPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer fromNode.Close()
	if err := echoOnce(fromNode); err != nil {
		t.Fatal(err)
	}
	if count := countFlows(t, n, s); count != 4 {
		t.Fatalf("%d flows before the slot is given back, want 4", count)
	}
	if err := n.Destroy(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if count := countFlows(t, n, s); count != 0 {
		t.Errorf("%d flows of the last tenant are known", count)
	}
	n.removals.Wait()
	n.next = s.Index
	again, err := n.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if again.IP4 != s.IP4 {
		t.Fatalf("the new slot has address %v, the test needs %v", again.IP4, s.IP4)
	}
	if count := countFlows(t, n, again); count != 0 {
		t.Errorf("the new tenant begins with %d flows", count)
	}
	expectSilence(t, again, one4) // and not with the last tenant's policy
	apply(t, n, again, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}))
	expect(t, again, policy.Allow, one4, one6)
	expect(t, again, policy.Deny, eight4)
}

func countFlows(t testing.TB, n *Network, s Slot) int {
	t.Helper()
	found, err := n.tracker.list(func(c tracked) bool {
		return c.src == s.IP4 || c.src == s.IP6 || c.dst == s.IP4 || c.dst == s.IP6
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// Numbers go round: an address rests before it is used again.
func TestSlotsAreNotReusedAtOnce(t *testing.T) {
	n := open(t)
	seen := map[int]bool{}
	for range 10 {
		s, err := n.Create(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if seen[s.Index] {
			t.Errorf("slot %d is used again", s.Index)
		}
		seen[s.Index] = true
		if err := n.Destroy(context.Background(), s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoSlotLeft(t *testing.T) {
	c := config(t)
	c.Range4 = netip.MustParsePrefix("198.18.8.0/29") // four pairs, of which the first is not used
	n := openWith(t, c)
	for range 3 {
		create(t, n, nil)
	}
	if s, err := n.Create(context.Background()); !errors.Is(err, ErrNoSlot) {
		t.Errorf("a fourth slot: %+v, %v", s, err)
	}
}

// Updates, kills and probes all at once: the last confirmed policy is the one
// in force.
func TestAttack32ConcurrentUpdates(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	policies := []*policy.Policy{
		openPolicy(t), nil, compile(t, policy.Document{}),
		compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}),
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 20 {
				if _, err := n.Apply(context.Background(), s, policies[(i+j)%len(policies)]); err != nil {
					t.Errorf("apply: %v", err)
				}
			}
		})
	}
	for range 4 {
		all.Go(func() {
			for range 5 {
				other, err := n.Create(context.Background())
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				if err := n.Destroy(context.Background(), other); err != nil {
					t.Errorf("destroy: %v", err)
				}
			}
		})
	}
	all.Wait()
	apply(t, n, s, policies[3])
	expect(t, s, policy.Allow, one4)
	expect(t, s, policy.Deny, eight4)

	// An update that meets a kill either comes first or finds no slot.
	all.Go(func() {
		for {
			if _, err := n.Apply(context.Background(), s, policies[0]); err != nil {
				if !errors.Is(err, ErrUnknownSlot) {
					t.Errorf("update during kill: %v", err)
				}
				return
			}
		}
	})
	if err := n.Destroy(context.Background(), s); err != nil {
		t.Errorf("kill during update: %v", err)
	}
	all.Wait()
}

// Every entry of the tracker is found, whatever there is of other flows.
func TestFlowsAreFoundAmongOthers(t *testing.T) {
	n := open(t)
	s, other := create(t, n, openPolicy(t)), create(t, n, openPolicy(t))
	for i := range 100 {
		dst := fmt.Sprintf("9.9.%d.1", i)
		dialFrom(t, s, "udp", dst)
		dialFrom(t, other, "udp", dst)
	}
	found, err := n.tracker.list(func(c tracked) bool { return c.src == s.IP4 })
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 100 {
		t.Fatalf("%d flows, want 100", len(found))
	}
	for _, c := range found {
		if f := c.flow(); f.Proto != policy.UDP || f.Dst.Port() != echoPort || c.src != s.IP4 {
			t.Errorf("a flow is %+v", f)
		}
	}
	if got := apply(t, n, s, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{"9.9.0.0/17"}})); got.Cut != 100 {
		t.Errorf("%d flows were cut, want 100", got.Cut)
	}
	if got := countFlows(t, n, other); got != 100 {
		t.Errorf("the neighbour has %d flows, want 100", got)
	}
}

// What the old and the new rules both deny never gets through while one takes
// the place of the other, not a single packet of a flood.
func TestChangesNeverLeak(t *testing.T) {
	n := open(t)
	byDefault := compile(t, policy.Document{AllowOut: []string{one4, one6}})
	byList := compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4, eight6}})
	s := create(t, n, byList)
	internet := listen(t, internetNS, "net0")
	for name, change := range map[string]func(p *policy.Policy) error{
		"apply": func(p *policy.Policy) error {
			_, err := n.Apply(context.Background(), s, p)
			return err
		},
		"adopt": func(p *policy.Policy) error {
			n.slots = map[int]*state{}
			return n.Adopt(context.Background(), []Tenant{{Slot: s, Policy: p}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			stop4, stop6 := flood(t, s, eight4), flood(t, s, eight6)
			for i := range 60 {
				p := byList
				if i%2 == 0 {
					p = byDefault
				}
				if err := change(p); err != nil {
					t.Fatal(err)
				}
			}
			if sent := stop4() + stop6(); sent < 1000 {
				t.Errorf("only %d packets were sent, the test shows nothing", sent)
			}
			if got := internet.frames(isUDPTo(forged)); len(got) > 0 {
				t.Errorf("%d denied packets got out", len(got))
			}
		})
	}
}

// flood sends datagrams to an address as fast as it can until stop is called,
// which returns how many were sent.
func flood(t *testing.T, s Slot, dst string) (stop func() int) {
	t.Helper()
	var conn net.Conn
	err := inNamespace(s.NetNS, func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(addr(dst), forged).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done, sent := make(chan struct{}), make(chan int)
	go func() {
		count := 0
		for {
			select {
			case <-done:
				sent <- count
				return
			default:
				// Every other write only reports that the one before was refused.
				if _, err := conn.Write([]byte("moat")); err == nil {
					count++
				}
			}
		}
	}()
	return func() int {
		close(done)
		count := <-sent
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		return count
	}
}
