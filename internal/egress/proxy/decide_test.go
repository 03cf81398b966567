package proxy

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// TestDecideAgreesWithPolicy holds what the proxy decides about a connection to
// what the policy says of the flow as a whole, for random policies and flows.
// The kernel's tests hold the way that flows take to the proxy, or past it, to
// the same.
func TestDecideAgreesWithPolicy(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	addrs := []string{"93.184.216.34", "93.184.216.35", "1.1.1.1", "2606:4700::1", "2606:4700::2", "198.19.3.4"}
	names := []string{"a.test", "b.a.test", "c.b.a.test", "b.test", "test"}
	entries := []string{
		"93.184.216.0/24", "93.184.216.34", "1.1.1.0/30", "2606:4700::/64", "2606:4700::1", "0.0.0.0/0", "::/0",
		"a.test", "*.a.test", "b.test", "*.test", "*",
	}
	some := func(from []string, most int) (list []string) {
		for range rng.IntN(most + 1) {
			list = append(list, from[rng.IntN(len(from))])
		}
		return list
	}
	verdicts := make(map[bool]int)
	for range 20_000 {
		doc := policy.Document{AllowOut: some(entries, 4), DenyOut: some(entries[:7], 4), Default: policy.Verdict(rng.IntN(2))}
		p, err := policy.Parse(doc, policy.Options{})
		if err != nil {
			continue // names without a denial of all else
		}
		dst := netip.AddrPortFrom(netip.MustParseAddr(addrs[rng.IntN(len(addrs))]), []uint16{80, 443, 22}[rng.IntN(3)])
		flow := policy.Flow{Proto: policy.TCP, Dst: dst}
		name, err := policy.ParseName(names[rng.IntN(len(names))])
		if err != nil {
			t.Fatal(err)
		}
		tenant := egress.Tenant{Sandbox: "i1", Policy: p}
		got, want := decide(tenant, dst, question{name: name}), p.DecideFlow(name, flow)
		if got.allow != (want.Verdict == policy.Allow) || got.rule != want.Rule.String() || got.entry != want.Entry || got.reason != want.Reason() {
			t.Fatalf("%v for %v under %+v: %v by %s %s, %s; the policy says %v by %s %s, %s",
				dst, name, doc, got.allow, got.rule, got.entry, got.reason, want.Verdict, want.Rule, want.Entry, want.Reason())
		}
		verdicts[got.allow]++
		nameless := decide(tenant, dst, question{why: "no name"})
		if d := p.Decide(flow); nameless.allow != (d.Verdict == policy.Allow) || nameless.rule != d.Rule.String() {
			t.Fatalf("%v without a name under %+v: %v by %s, the policy says %v by %s", dst, doc, nameless.allow, nameless.rule, d.Verdict, d.Rule)
		}
	}
	if verdicts[true] < 1000 || verdicts[false] < 1000 {
		t.Errorf("allowed and refused: %v; the test looks at too little", verdicts)
	}
}
