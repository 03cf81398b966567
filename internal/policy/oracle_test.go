package policy_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"go4.org/netipx"

	"github.com/moat-sandbox/moat/internal/policy"
)

// naive decides like E2B documents it, slowly and obviously, without any code
// of the engine but the never-reachable table.
func naive(doc policy.Document, never *policy.Never, a netip.Addr) policy.Verdict {
	in := func(list []string) bool {
		for _, entry := range list {
			if entry == policy.AllTraffic {
				return true
			}
			if isName(entry) {
				continue
			}
			p, err := netip.ParsePrefix(entry)
			if err != nil {
				single := netip.MustParseAddr(entry)
				p = netip.PrefixFrom(single, single.BitLen())
			}
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	blocked4, blocked6 := never.Ranges()
	switch {
	case inRanges(a, blocked4, blocked6):
		return policy.Deny
	case in(doc.AllowOut):
		return policy.Allow
	case in(doc.DenyOut):
		return policy.Deny
	}
	return doc.Default
}

// byRanges decides as the kernel does, from the plain ranges.
func byRanges(p *policy.Policy, a netip.Addr) policy.Verdict {
	r := p.Ranges()
	never4, never6 := p.Never().Ranges()
	switch {
	case inRanges(a, never4, never6):
		return policy.Deny
	case inRanges(a, r.Allow4, r.Allow6):
		return policy.Allow
	case inRanges(a, r.Deny4, r.Deny6):
		return policy.Deny
	}
	return r.Default
}

func inRanges(a netip.Addr, lists ...[]netipx.IPRange) bool {
	for _, list := range lists {
		for _, r := range list {
			if r.Contains(a) {
				return true
			}
		}
	}
	return false
}

// world makes random documents and addresses that meet often: everything is
// taken from a few bits around a few bases.
type world struct{ *rand.Rand }

func newWorld(seed uint64) world { return world{rand.New(rand.NewPCG(seed, 0))} }

func (w world) addr() netip.Addr {
	switch w.IntN(8) {
	case 0: // near and in what is never reachable
		return netip.AddrFrom4([4]byte{10, byte(w.IntN(2)), 0, byte(w.IntN(4))})
	case 1:
		return netip.AddrFrom4([4]byte{255, 255, 255, byte(252 + w.IntN(4))})
	case 2:
		return netip.AddrFrom4([4]byte{byte(w.IntN(256)), byte(w.IntN(256)), byte(w.IntN(256)), byte(w.IntN(256))})
	case 3, 4:
		return netip.AddrFrom16([16]byte{0x26, 0x06, 0x47, byte(w.IntN(4)), 15: byte(w.IntN(4))})
	case 5:
		return netip.AddrFrom16([16]byte{byte(w.IntN(256)), byte(w.IntN(256)), 15: byte(w.IntN(256))})
	}
	return netip.AddrFrom4([4]byte{93, 184, byte(w.IntN(4)), byte(w.IntN(8))})
}

func (w world) entry() string {
	for {
		a := w.addr()
		if a.IsUnspecified() || a.Is4In6() {
			continue
		}
		if w.IntN(3) == 0 {
			return a.String()
		}
		p := netip.PrefixFrom(a, 1+w.IntN(a.BitLen()))
		if w.IntN(12) == 0 {
			p = netip.PrefixFrom(a, 0)
			if a.Is4() {
				return policy.AllTraffic
			}
		}
		if m := p.Masked(); m.Bits() == 0 || !m.Addr().IsUnspecified() {
			return p.String()
		}
	}
}

func (w world) document() policy.Document {
	doc := policy.Document{Default: policy.Verdict(w.IntN(2))}
	for range w.IntN(6) {
		doc.AllowOut = append(doc.AllowOut, w.entry())
	}
	for range w.IntN(6) {
		doc.DenyOut = append(doc.DenyOut, w.entry())
	}
	w.addNames(&doc)
	w.addRules(&doc)
	return doc
}

// FuzzDecide holds Decide, and the ranges for the kernel, to the naive
// evaluator.
func FuzzDecide(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		w := newWorld(seed)
		never, err := policy.NewNever(nil, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")})
		if err != nil {
			t.Fatal(err)
		}
		doc := w.document()
		p, err := policy.Parse(doc, policy.Options{Never: never, Rules: true})
		if refused := naiveNeedsDenyAll(doc); refused != (err != nil) {
			t.Fatalf("%+v: %v", doc, err)
		} else if refused {
			return
		}
		for range 50 {
			a := w.addr()
			d := p.Decide(policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(a, 443)})
			if want := naive(doc, never, a); d.Verdict != want {
				t.Errorf("%v under %+v: %v (%s), want %v", a, doc, d.Verdict, d.Reason(), want)
			}
			if ranges := byRanges(p, a); ranges != d.Verdict {
				t.Errorf("%v under %+v: the ranges say %v, Decide %v", a, doc, ranges, d.Verdict)
			}
		}
		checkNames(t, w, doc, p)
		checkRequests(t, w, doc, p)
	})
}
