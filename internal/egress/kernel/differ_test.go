package kernel

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go4.org/netipx"

	"github.com/moat-sandbox/moat/internal/policy"
)

// route is what the rules make of the first packet of a flow.
type route string

const (
	direct     route = "direct"
	refused    route = "refused"
	toProxy    route = "proxy"
	toResolver route = "resolver"
)

// reader runs the rules of a plan on a packet, by their texts, which another
// test holds to what the kernel is given. What it does not know ends the test.
type reader struct {
	t      *testing.T
	doors  Doors
	sets   map[string]set
	chains map[string][]rule
	maps   map[string]string // by map, the chain of the one slot there is
}

// packet is the first one of a flow.
type packet struct {
	proto      policy.Proto
	dst        netip.AddrPort
	redirected bool
}

func newReader(t *testing.T, l layout, shared basePlan, p slotPlan) *reader {
	r := &reader{
		t: t, doors: l.doors, sets: make(map[string]set), chains: make(map[string][]rule),
		maps: map[string]string{mapOut: p.out.name, mapIn: p.in.name, mapRedirect: p.redirect.name},
	}
	for _, s := range slices.Concat(shared.sets, p.sets) {
		r.sets[s.name] = s
	}
	for _, c := range append(slices.Clone(shared.inet), p.out, p.in, p.redirect) {
		r.chains[c.name] = c.rules
	}
	return r
}

// route sends a packet on its way.
func (r *reader) route(p packet) route {
	if to, ok := strings.CutPrefix(r.run("arrive", p), "dnat "); ok {
		_, door, _ := strings.Cut(to, " to ")
		p.dst, p.redirected = netip.MustParseAddrPort(door), true
		if end := r.run("to_node", p); end != "accept" {
			r.t.Fatalf("what is redirected to %v: %s", p.dst, end)
		}
		if p.dst.Port() == r.doors.Proxy {
			return toProxy
		}
		return toResolver
	}
	switch end := r.run("from_slot", p); end {
	case "accept":
		return direct
	case "goto refuse":
		return refused
	default:
		r.t.Fatalf("%v ends with %q", p.dst, end)
		return refused
	}
}

// run runs a chain and those it leads to, and returns the last statement.
func (r *reader) run(chain string, p packet) (end string) {
	rules, known := r.chains[chain]
	if !known {
		r.t.Fatalf("there is no chain %s", chain)
	}
	for _, row := range rules {
		for _, s := range row {
			next, verdict := strings.CutPrefix(s.text, "goto ")
			switch {
			case s.text == "goto refuse", s.text == "accept", s.text == "drop", strings.HasPrefix(s.text, "dnat "):
				return s.text
			case verdict:
				return r.run(next, p)
			case strings.HasPrefix(s.text, "iifname vmap @"):
				return r.run(r.maps[strings.TrimPrefix(s.text, "iifname vmap @")], p)
			case !r.matches(s.text, p):
			default:
				continue
			}
			break // the next rule
		}
	}
	return "accept" // the policy of chains with a hook, and for others nothing more to say
}

// matches reports whether a statement lets the next one of its rule run.
func (r *reader) matches(text string, p packet) bool {
	words := strings.Fields(text)
	is4 := p.dst.Addr().Is4()
	switch {
	case text == "counter", strings.HasPrefix(text, "iifname"), text == "ct state new", strings.HasPrefix(text, "tcp option"):
		return true
	case strings.HasPrefix(text, "oifname"), strings.HasPrefix(text, "ct state"), strings.HasPrefix(text, "limit rate over"), strings.HasPrefix(text, "add @flows"), text == "ct direction reply":
		return false
	case text == "ct status dnat":
		return p.redirected
	case strings.HasPrefix(text, "tcp flags syn"):
		return p.proto == policy.TCP
	case text == "icmp type echo-request", text == "meta l4proto icmp":
		return p.proto == policy.ICMP && is4
	case text == "icmpv6 type echo-request", text == "meta l4proto ipv6-icmp":
		return p.proto == policy.ICMP && !is4
	case strings.HasPrefix(text, "icmp"):
		return false
	case strings.HasPrefix(text, "@th,"): // these packets ask nothing
		return false
	case text == "meta nfproto ipv4", text == "meta nfproto ipv6":
		return is4 == (words[2] == "ipv4")
	case words[0] == "meta" && words[1] == "l4proto":
		return p.proto.String() == words[2]
	case words[0] == "ip" || words[0] == "ip6":
		return is4 == (words[0] == "ip") && r.addressed(words[2:], p.dst.Addr())
	case words[1] == "dport":
		return (words[0] == "th" && p.proto != policy.ICMP || words[0] == p.proto.String()) && r.numbered(words[2:], p.dst.Port())
	}
	r.t.Fatalf("the reader does not know %q", text)
	return false
}

// addressed compares an address with a set, a prefix or an address.
func (r *reader) addressed(words []string, a netip.Addr) bool {
	if name, ok := strings.CutPrefix(words[0], "@"); ok {
		return contained(r.sets[name].ranges, a)
	}
	if words[0] == "!=" {
		return !r.addressed(words[1:], a)
	}
	if prefix, err := netip.ParsePrefix(words[0]); err == nil {
		return prefix.Contains(a)
	}
	return netip.MustParseAddr(words[0]) == a
}

func (r *reader) numbered(words []string, port uint16) bool {
	if words[0] == "!=" {
		return !r.numbered(words[1:], port)
	}
	n, err := strconv.ParseUint(words[0], 10, 16)
	if err != nil {
		r.t.Fatal(err)
	}
	return uint16(n) == port
}

// stale says that a flow goes to an address that our resolver gave out under an
// earlier policy, while this one allows all addresses around it: names are
// looked up for real then, and who asks again gets there.
func stale(p *policy.Policy, f policy.Flow) bool {
	ranges := p.Ranges()
	return policy.Synthetic().Contains(f.Dst.Addr()) &&
		(contained(ranges.Allow4, f.Dst.Addr()) || ranges.Default == policy.Allow && !contained(ranges.Deny4, f.Dst.Addr()))
}

func contained(ranges []netipx.IPRange, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(in netipx.IPRange) bool { return in.Contains(a) })
}

// wanted is where a flow has to go, slowly and obviously.
func wanted(p *policy.Policy, f policy.Flow) route {
	carry, port := p.Carry(), f.Dst.Port()
	tcp := f.Proto == policy.TCP
	web := tcp && (port == 80 || port == 443)
	question := port == 53 && f.Proto != policy.ICMP
	synthetic := policy.Synthetic().Contains(f.Dst.Addr())
	allowed := p.Decide(f).Verdict == policy.Allow
	home4, home6 := policy.HomeAddrs()
	switch {
	case tcp && (f.Dst.Addr() == home4 || f.Dst.Addr() == home6):
		return toProxy
	case p.Never().Contains(f.Dst.Addr()) && (!synthetic || question):
		return refused
	case carry == policy.CarryTCP && tcp && (port != 53 || allowed), carry == policy.CarryAllWeb && web:
		return toProxy
	case allowed:
		return direct
	case carry == policy.CarryNone:
		return refused
	case question:
		return toResolver
	case web:
		return toProxy
	}
	return refused
}

var differNames = []string{"a.test", "b.a.test", "c.b.a.test", "b.test", "test"}

// randomPolicy has addresses, often names, and sometimes what makes the proxy
// carry more.
func randomPolicy(t *testing.T, rng *rand.Rand) (*policy.Policy, policy.Document) {
	doc := randomDocument(rng)
	if rng.IntN(3) > 0 {
		for range 1 + rng.IntN(3) {
			name := differNames[rng.IntN(len(differNames))]
			doc.AllowOut = append(doc.AllowOut, []string{name, "*." + name, "*"}[min(rng.IntN(5)/2, 2)])
		}
		doc.Default = policy.Deny
	}
	switch rng.IntN(5) {
	case 0:
		doc.Rules = strict()
	case 1:
		doc.EgressProxy = upstream()
	}
	p, err := policy.Parse(doc, policy.Options{Never: never(t), Rules: true})
	if err != nil {
		t.Fatalf("%+v: %v", doc, err)
	}
	return p, doc
}

// TestPlanAgreesWithPolicy reads the rules of random policies and holds them to
// what Decide says, and together with the proxy, which asks DecideFlow, to what
// DecideFlow says about the flow as a whole. The proxy's own tests hold it to
// DecideFlow.
func TestPlanAgreesWithPolicy(t *testing.T) {
	l := testLayout(t)
	shared := planBase(l, never(t))
	slot, err := l.slot(12)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	seen := make(map[route]int)
	for round := range 3000 {
		p, doc := randomPolicy(t, rng)
		plan, err := planSlot(slot, p, 1)
		if err != nil {
			t.Fatal(err)
		}
		r := newReader(t, l, shared, plan)
		for range 30 {
			f := randomFlow(rng)
			got := r.route(packet{proto: f.Proto, dst: f.Dst})
			seen[got]++
			if stale(p, f) && got == refused {
				continue
			}
			if want := wanted(p, f); got != want {
				t.Fatalf("round %d: %v to %v: the rules say %s, want %s; %v, %+v", round, f.Proto, f.Dst, got, want, p.Carry(), doc)
			}
			name, err := policy.ParseName(differNames[rng.IntN(len(differNames))])
			if err != nil {
				t.Fatal(err)
			}
			if f.Proto != policy.TCP || got == toResolver {
				continue
			}
			whole := p.DecideFlow(name, f)
			passes := got == direct || got == toProxy && whole.Verdict == policy.Allow
			if passes != (whole.Verdict == policy.Allow) {
				t.Fatalf("round %d: %v to %v for %v: %s, but as a whole %v because %s; %+v", round, f.Proto, f.Dst, name, got, whole.Verdict, whole.Reason(), doc)
			}
		}
	}
	for _, each := range []route{direct, refused, toProxy, toResolver} {
		if seen[each] < 1000 {
			t.Errorf("only %d flows took the way %q: the test looks at too little", seen[each], each)
		}
	}
}

func randomFlow(rng *rand.Rand) policy.Flow {
	addr := randomAddr(rng)
	if rng.IntN(8) == 0 {
		addr = netip.AddrFrom4([4]byte{198, 19, byte(rng.IntN(256)), 7}) // half of them synthetic
	}
	if home4, home6 := policy.HomeAddrs(); rng.IntN(16) == 0 {
		addr = []netip.Addr{home4, home6}[rng.IntN(2)]
	}
	f := policy.Flow{Proto: protocols[rng.IntN(3)], Dst: netip.AddrPortFrom(addr, []uint16{53, 80, 443, 22}[rng.IntN(4)])}
	if f.Proto == policy.ICMP {
		f.Dst = netip.AddrPortFrom(addr, 0)
	}
	return f
}
