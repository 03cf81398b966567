package policy_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"go4.org/netipx"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Prefixes that lie in one another, beside one another or apart become the ranges
// that a set of addresses has, to both ends of the address space.
func TestRangesAreThoseOfASet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var texts []string
		var b netipx.IPSetBuilder
		for range random.IntN(40) {
			// Few different bits, so that they meet.
			addr := netip.AddrFrom4([4]byte{byte(random.IntN(2)) * 255, byte(random.IntN(2)) * 255, 255 * byte(random.IntN(2)), byte(random.IntN(256))})
			prefix := netip.PrefixFrom(addr, 32-random.IntN(9)).Masked()
			if random.IntN(2) == 0 {
				prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: addr.As4()[0], 15: addr.As4()[3]}), 128-random.IntN(9)).Masked()
			}
			if prefix.Addr().IsUnspecified() { // which stands for all traffic
				continue
			}
			texts = append(texts, prefix.String())
			b.AddPrefix(prefix)
		}
		p, err := policy.Parse(policy.Document{DenyOut: texts, Default: policy.Allow}, policy.Options{})
		if err != nil {
			t.Fatal(err)
		}
		set, err := b.IPSet()
		if err != nil {
			t.Fatal(err)
		}
		r := p.Ranges()
		if got := slices.Concat(r.Deny4, r.Deny6); !slices.Equal(got, set.Ranges()) {
			t.Fatalf("%v has ranges\n%v, want\n%v", texts, got, set.Ranges())
		}
	}
}
