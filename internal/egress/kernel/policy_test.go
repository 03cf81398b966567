package kernel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Public addresses of the laboratory's internet, where in truth every address
// answers.
const (
	one4, one6     = "1.1.1.1", "2606:4700:4700::1111"
	eight4, eight6 = "8.8.8.8", "2001:4860:4860::8888"
	site4          = "93.184.216.34"
)

func TestOpen(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	expect(t, s, policy.Allow, one4, one6, eight4, eight6, site4)
}

func TestInternetOff(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{}))
	expect(t, s, policy.Deny, one4, one6, site4)
}

func TestDenyList(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{
		Default: policy.Allow,
		DenyOut: []string{eight4, "2606:4700::/32", "93.184.0.0/16"},
	}))
	expect(t, s, policy.Deny, eight4, one6, site4)
	expect(t, s, policy.Allow, one4, eight6, "8.8.8.7", "8.8.8.9", "93.183.255.255", "93.185.0.0")
}

func TestAllowBeatsDeny(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{
		Default:  policy.Allow,
		AllowOut: []string{one4, one6},
		DenyOut:  []string{"1.0.0.0/8", "2606:4700::/32"},
	}))
	expect(t, s, policy.Allow, one4, one6, eight4, eight6)
	expect(t, s, policy.Deny, "1.0.0.1", "2606:4700::1")
}

// What E2B calls ALL_TRAFFIC closes both families.
func TestAttack23IPv6WhileIPv4IsDenied(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{
		Default:  policy.Allow,
		AllowOut: []string{one4},
		DenyOut:  []string{policy.AllTraffic},
	}))
	expect(t, s, policy.Allow, one4)
	expect(t, s, policy.Deny, eight4, one6, eight6)
}

// The internet of the laboratory answers at all these addresses, and the policy
// allows them all; only the never-reachable table stands in between.
func TestAttack14NeverReachable(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{Default: policy.Allow, AllowOut: []string{policy.AllTraffic, "10.0.0.0/8", "fd00::/8"}}))
	expect(t, s, policy.Deny,
		"10.0.0.1", "100.64.0.1", "100.100.100.200", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.0.192", "192.0.2.1", "192.168.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
		"64:ff9b::a00:1", "64:ff9b:1::1", "100::1", "2001:0:1::1", "2001:db8::1", "2002:a00:1::1", "3fff::1",
		"fc00::1", "fd00:ec2::254", "fec0::1", "4000::1",
	)
	expect(t, s, policy.Allow, one4, one6, "11.0.0.1", "172.32.0.1", "2003::1")
}

func TestExemptRangeIsJudgedByTheLists(t *testing.T) {
	table, err := policy.NewNever(nil, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	c := config(t)
	c.Never = table
	n := openWith(t, c)
	p, err := policy.Parse(policy.Document{Default: policy.Allow, DenyOut: []string{"10.1.2.3"}}, policy.Options{Never: table})
	if err != nil {
		t.Fatal(err)
	}
	s := create(t, n, p)
	expect(t, s, policy.Allow, "10.1.0.1")
	expect(t, s, policy.Deny, "10.1.2.3", "10.2.0.1")
}

// A program must not have to wait for a timeout, not even at its hundredth try.
func TestRefusalsComeAtOnce(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{}))
	for _, proto := range []policy.Proto{policy.TCP, policy.UDP} {
		for _, dst := range []string{one4, one6} {
			for i := range 40 {
				if got := probe(t, s, proto, addr(dst)); got != denied(proto) {
					t.Fatalf("%v to %s, try %d: %s, want %s", proto, dst, i, got, denied(proto))
				}
			}
		}
	}
}

// A new slot passes packets as soon as there is one, also the first.
func TestFirstPacketIsNotLost(t *testing.T) {
	n := open(t)
	const slots = 20
	late := 0
	for range slots {
		s, err := n.Create(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		apply(t, n, s, compile(t, policy.Document{AllowOut: []string{one6}}))
		start := time.Now()
		if got := probe(t, s, policy.ICMP, addr(one4)); got != prohibited {
			t.Errorf("ping %s: %s, want prohibited", one4, got)
		}
		if got := probe(t, s, policy.UDP, addr(one6)); got != reached {
			t.Errorf("udp to %s: %s, want reached", one6, got)
		}
		if time.Since(start) > resend { // something was sent twice, or the machine is busy
			late++
		}
	}
	if late > slots/2 {
		t.Errorf("of %d slots %d answered late", slots, late)
	}
}

func TestMoreThanTheDefaultLimitOfEntries(t *testing.T) {
	doc := policy.Document{Default: policy.Allow}
	for i := range policy.DefaultMaxEntries {
		doc.AllowOut = append(doc.AllowOut, fmt.Sprintf("60.%d.%d.1", i/250, i%250), fmt.Sprintf("2a00:%x::1", i))
		doc.DenyOut = append(doc.DenyOut, fmt.Sprintf("60.%d.%d.0/24", i/250, i%250), fmt.Sprintf("2a00:%x::/32", i))
	}
	p, err := policy.Parse(doc, policy.Options{Never: never(t), MaxEntries: 2 * policy.DefaultMaxEntries})
	if err != nil {
		t.Fatal(err)
	}
	n := open(t)
	s := create(t, n, p)
	expect(t, s, policy.Allow, one4, "60.0.0.1", "60.39.249.1", "2a00::1", "2a00:270f::1")
	expect(t, s, policy.Deny, "60.0.0.2", "60.39.249.2", "2a00::2", "2a00:270f::2")
	apply(t, n, s, openPolicy(t))
	expect(t, s, policy.Allow, "60.0.0.2", "2a00::2")
}

// TestKernelAgreesWithDecide puts random policies into the kernel and sends
// real packets to random addresses.
func TestKernelAgreesWithDecide(t *testing.T) {
	n := open(t)
	s := create(t, n, nil)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for range 60 {
		doc := randomDocument(rng)
		p := compile(t, doc)
		apply(t, n, s, p)
		for range 12 {
			f := policy.Flow{Proto: protocols[rng.IntN(3)], Dst: netip.AddrPortFrom(randomAddr(rng), echoPort)}
			d := p.Decide(f)
			want := reached
			if d.Verdict == policy.Deny {
				want = denied(f.Proto)
			}
			if got := probe(t, s, f.Proto, f.Dst.Addr()); got != want {
				t.Errorf("%v to %v: %s, but Decide says %v because %s; document %+v", f.Proto, f.Dst, got, d.Verdict, d.Reason(), doc)
			}
		}
	}
}

// randomAddr returns addresses that meet the entries of randomDocument often.
func randomAddr(rng *rand.Rand) netip.Addr {
	switch rng.IntN(8) {
	case 0:
		return netip.AddrFrom4([4]byte{10, 1, 0, byte(rng.IntN(4))})
	case 1:
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 9, 15: byte(1 + rng.IntN(4))})
	case 2:
		return netip.AddrFrom4([4]byte{byte(11 + rng.IntN(80)), byte(rng.IntN(256)), byte(rng.IntN(256)), 1})
	case 3, 4, 5:
		return netip.AddrFrom16([16]byte{0x26, 0x06, 0x47, byte(rng.IntN(4)), 15: byte(1 + rng.IntN(4))})
	}
	return netip.AddrFrom4([4]byte{93, 184, byte(rng.IntN(4)), byte(1 + rng.IntN(4))})
}

func randomDocument(rng *rand.Rand) policy.Document {
	list := func() (entries []string) {
		for range rng.IntN(6) {
			a := randomAddr(rng)
			p := netip.PrefixFrom(a, 5+rng.IntN(a.BitLen()-4))
			if rng.IntN(16) == 0 {
				p = netip.PrefixFrom(a, 0)
			}
			entries = append(entries, p.String())
		}
		return entries
	}
	return policy.Document{Default: policy.Verdict(rng.IntN(2)), AllowOut: list(), DenyOut: list()}
}

// An update that cannot be made leaves everything as it was.
func TestFailedUpdateKeepsTheRules(t *testing.T) {
	n := open(t)
	s := create(t, n, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}))
	before := nft(t, "-s", "list", "ruleset")

	other, err := policy.NewNever(nil, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse(policy.Document{Default: policy.Allow}, policy.Options{Never: other})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Apply(context.Background(), s, p); err == nil || !strings.Contains(err.Error(), "another table") {
		t.Errorf("a policy with another table of never-reachable addresses: %v", err)
	}

	// The last change of this transaction is refused; the others must not stay.
	plan, err := planSlot(s, openPolicy(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	broken := newTransaction()
	n.rules.replace(broken, plan, nil)
	broken.deleteChain(inetFamily, n.table(), "no_such_chain")
	if err := n.rules.commit(broken); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "delete chain no_such_chain") {
		t.Errorf("a transaction with a mistake: %v", err)
	}
	if after := nft(t, "-s", "list", "ruleset"); after != before {
		t.Errorf("the rules were\n%s\nand are\n%s", before, after)
	}
	expect(t, s, policy.Deny, eight4)
	expect(t, s, policy.Allow, one4)
}

func TestUnknownSlots(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	other := s
	other.Index++
	for name, slot := range map[string]Slot{"zero": {}, "never made": mustSlot(t, n, s.Index%n.maxIndex()+1), "forged": other} {
		if _, err := n.Apply(context.Background(), slot, openPolicy(t)); !errors.Is(err, ErrUnknownSlot) {
			t.Errorf("%s slot: Apply says %v", name, err)
		}
		if err := n.Destroy(context.Background(), slot); err != nil {
			t.Errorf("%s slot: Destroy says %v", name, err)
		}
	}
	if _, err := n.Load(s.Index%n.maxIndex() + 1); !errors.Is(err, ErrUnknownSlot) {
		t.Errorf("Load of a slot never made: %v", err)
	}
	if _, err := n.Load(0); !errors.Is(err, ErrUnknownSlot) {
		t.Errorf("Load of slot 0: %v", err)
	}
	if got, err := n.Load(s.Index); err != nil || got.IP4 != s.IP4 {
		t.Errorf("Load of a slot: %+v, %v", got, err)
	}
	expect(t, s, policy.Allow, one4)
}

func mustSlot(t testing.TB, n *Network, index int) Slot {
	t.Helper()
	s, err := n.slot(index)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
