package kernel

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// witness keeps what a Watch tells.
type witness struct {
	mu   sync.Mutex
	seen []Event
	news chan struct{}
}

func watch(t *testing.T, n *Network) *witness {
	t.Helper()
	w := &witness{news: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- n.watch(ctx, w.tell, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return w
}

func (w *witness) tell(e Event) {
	w.mu.Lock()
	w.seen = append(w.seen, e)
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (w *witness) events(match func(Event) bool) []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.seen), func(e Event) bool { return !match(e) })
}

// await waits for an event and returns the first that matches.
func (w *witness) await(t *testing.T, what string, match func(Event) bool) Event {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		if found := w.events(match); len(found) > 0 {
			return found[0]
		}
		select {
		case <-w.news:
		case <-deadline:
			t.Fatalf("no event of %s among %+v", what, w.events(func(Event) bool { return true }))
		}
	}
}

func flowTo(s Slot, proto policy.Proto, dst netip.AddrPort) func(Event) bool {
	return func(e Event) bool { return e.Slot == s.Index && e.Proto == proto && e.Dst == dst }
}

func portOf(proto policy.Proto, port uint16) uint16 {
	if proto == policy.ICMP {
		return 0
	}
	return port
}

// Whatever is refused is told, with the address it was for and what stood in its
// way.
func TestRefusalsAreTold(t *testing.T) {
	n := open(t)
	s, other := create(t, n, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4, eight6}})), create(t, n, nil)
	w := watch(t, n)
	for dst, want := range map[string]Outcome{
		eight4: Refused, eight6: Refused, "10.0.0.1": Refused, "fd00:ec2::254": Refused,
		node4.String(): RefusedNode, node6.String(): RefusedNode, s.Gateway4.String(): RefusedSandbox,
		other.IP4.String(): RefusedSandbox, other.IP6.String(): RefusedSandbox,
	} {
		began := time.Now()
		expect(t, s, policy.Deny, dst)
		for _, proto := range protocols {
			e := w.await(t, fmt.Sprintf("%v to %s", proto, dst), flowTo(s, proto, netip.AddrPortFrom(addr(dst), portOf(proto, echoPort))))
			if e.Outcome != want || e.Src != s.ownAddr(addr(dst)) || e.Began.Before(began) || e.BytesUp != 0 || e.Outcome.Allowed() {
				t.Errorf("%v to %s: the event is %+v, want outcome %d", proto, dst, e, want)
			}
		}
	}
	expect(t, s, policy.Allow, one4)
	if told := w.events(func(e Event) bool { return e.Dst.Addr() == addr(one4) }); len(told) > 0 {
		t.Errorf("flows that go on are told: %+v", told)
	}
}

// One sandbox that is refused all the time does not drown the others.
func TestRefusalsAreLimitedPerSandbox(t *testing.T) {
	n := open(t)
	p := compile(t, policy.Document{})
	noisy, quiet := create(t, n, p), create(t, n, p)
	w := watch(t, n)
	stop := flood(t, noisy, eight4)
	of := func(s Slot) func(Event) bool { return func(e Event) bool { return e.Slot == s.Index } }
	w.await(t, "the flood", of(noisy))
	for i := range 5 {
		dst := addr(fmt.Sprintf("9.9.9.%d", i+1))
		probe(t, quiet, policy.TCP, dst)
		w.await(t, "a quiet sandbox", flowTo(quiet, policy.TCP, netip.AddrPortFrom(dst, echoPort)))
	}
	sent, told := stop(), len(w.events(of(noisy)))
	if sent < 1000 || told > refusalBurst+10*refusalRate {
		t.Errorf("of %d refused packets %d were told", sent, told)
	}
}

// twoTicks of the kernel's slowest clock: the timeouts that durations are counted
// from begin and end with one.
const twoTicks = 20 * time.Millisecond

// Allowed flows are told when they are over, with what they carried.
func TestEndedFlowsAreTold(t *testing.T) {
	forgetSoon(t)
	n := open(t)
	s := create(t, n, openPolicy(t))
	w := watch(t, n)
	began := time.Now()
	expect(t, s, policy.Allow, one4, one6)
	probing := time.Since(began) + 500*time.Millisecond // the tracker counts time in ticks
	for _, dst := range []string{one4, one6} {
		for _, proto := range protocols {
			e := w.await(t, fmt.Sprintf("%v to %s", proto, dst), flowTo(s, proto, netip.AddrPortFrom(addr(dst), portOf(proto, echoPort))))
			if e.Outcome != Ended || !e.Outcome.Allowed() || e.Src != s.ownAddr(addr(dst)) {
				t.Errorf("%v to %s: the event is %+v", proto, dst, e)
			}
			if e.BytesUp < 24 || e.BytesDown < 24 || e.BytesUp > 2000 || e.BytesDown > 2000 {
				t.Errorf("%v to %s: %d bytes went up and %d down", proto, dst, e.BytesUp, e.BytesDown)
			}
			if e.Began.Before(began) || e.Duration > probing+twoTicks {
				t.Errorf("%v to %s: it began %v after the test and took %v", proto, dst, e.Began.Sub(began), e.Duration)
			}
		}
	}
	t.Logf("the last was told after %v", time.Since(began))
}

// forgetSoon makes the tracker of this node forget flows a second after their
// end.
func forgetSoon(t *testing.T) {
	t.Helper()
	for _, name := range []string{"tcp_timeout_time_wait", "tcp_timeout_close", "udp_timeout", "udp_timeout_stream", "icmp_timeout", "icmpv6_timeout"} {
		name = "netfilter/nf_conntrack_" + name
		before, err := readSysctl(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := setSysctl(name, "1"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := setSysctl(name, before); err != nil {
				t.Error(err)
			}
		})
	}
}

// A flow that an update or the end of the slot cuts is told as such.
func TestCutFlowsAreTold(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	w := watch(t, n)
	dialFrom(t, s, "tcp", eight4)
	dialFrom(t, s, "udp", one6)
	apply(t, n, s, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}))
	e := w.await(t, "the update", flowTo(s, policy.TCP, netip.AddrPortFrom(addr(eight4), echoPort)))
	if e.Outcome != Cut || e.BytesUp == 0 || e.BytesDown == 0 || e.Duration <= 0 || e.Duration > time.Minute {
		t.Errorf("the event is %+v", e)
	}
	if err := n.Destroy(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if e := w.await(t, "the end", flowTo(s, policy.UDP, netip.AddrPortFrom(addr(one6), echoPort))); e.Outcome != Cut {
		t.Errorf("the event is %+v", e)
	}
}

// What goes through the doors is for the proxy and the resolver to tell.
func TestRedirectedFlowsAreNotTold(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	s := create(t, n, names(t))
	w := watch(t, n)
	wantVisit(t, s, "tcp", example4, 443, byProxy(s, example4, 443))
	wantVisit(t, s, "tcp", example4, 22, string(reset))
	apply(t, n, s, nil)
	w.await(t, "the refused one", flowTo(s, policy.TCP, netip.AddrPortFrom(addr(example4), 22)))
	if told := w.events(func(e Event) bool { return e.Dst.Port() != 22 }); len(told) > 0 {
		t.Errorf("told was %+v", told)
	}
}

// Two that watch would each hear half.
func TestOnlyOneWatches(t *testing.T) {
	n := open(t)
	watch(t, n)
	if err := n.Watch(context.Background(), func(Event) {}); err == nil {
		t.Error("a second one watches")
	}
}

// One failure does not end the forgetting, and many are told once.
func TestForgettingGoesOn(t *testing.T) {
	var said strings.Builder
	tick, calls := make(chan time.Time), make(chan error)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		forgetExpired(ctx, tick, func() error { return <-calls }, slog.New(slog.NewTextHandler(&said, nil)))
	}()
	for _, outcome := range []error{unix.ENOBUFS, unix.ENOBUFS, nil, unix.ENOBUFS} {
		tick <- time.Now()
		calls <- outcome
	}
	cancel()
	<-ended
	if n := strings.Count(said.String(), unix.ENOBUFS.Error()); n != 2 {
		t.Errorf("two times of failures were told %d times: %s", n, said.String())
	}
}

func TestParseHead(t *testing.T) {
	src4, dst4, src6, dst6 := addr("198.18.0.3"), addr(one4), addr("fd6d:6f61:7400::3"), addr(one6)
	udp4, udp6 := datagramTo(src4, dst4, 53), datagramTo(src6, dst6, 53)
	whole4, whole6 := ip4(src4, dst4, unix.IPPROTO_UDP, nil, udp4), ip6(src6, dst6, unix.IPPROTO_UDP, udp6)
	for name, test := range map[string]struct {
		packet []byte
		src    netip.Addr
		dst    netip.AddrPort
		proto  policy.Proto
	}{
		"nothing":       {},
		"version 5":     {packet: append([]byte{0x55}, make([]byte, 60)...), dst: netip.AddrPort{}},
		"UDP":           {whole4, src4, netip.AddrPortFrom(dst4, 53), policy.UDP},
		"UDP cut short": {whole4[:22], src4, netip.AddrPortFrom(dst4, 0), policy.UDP},
		"only a header": {whole4[:19], netip.Addr{}, netip.AddrPort{}, 0},
		"UDP over IPv6": {whole6, src6, netip.AddrPortFrom(dst6, 53), policy.UDP},
		"ICMPv6":        {ip6(src6, dst6, unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0}), src6, netip.AddrPortFrom(dst6, 0), policy.ICMP},
		"GRE":           {ip4(src4, dst4, unix.IPPROTO_GRE, nil, udp4), src4, netip.AddrPortFrom(dst4, 0), 47},
	} {
		src, dst, proto := parseHead(test.packet)
		if src != test.src || dst != test.dst || proto != test.proto {
			t.Errorf("%s: from %v to %v by %v, want %v, %v, %v", name, src, dst, proto, test.src, test.dst, test.proto)
		}
	}
}
