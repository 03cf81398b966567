package egress_test

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

var (
	first4, first6   = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	second4, second6 = netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
)

func expectTenant(t *testing.T, r *egress.Registry, addr netip.Addr, sandbox string, generation uint64) {
	t.Helper()
	got, ok := r.Tenant(addr)
	if ok != (sandbox != "") || got.Sandbox != sandbox || got.Generation != generation {
		t.Errorf("%v belongs to %+v, %v; want %q in generation %d", addr, got, ok, sandbox, generation)
	}
}

func TestRegistry(t *testing.T) {
	var r egress.Registry
	expectTenant(t, &r, first4, "", 0)
	expectTenant(t, &r, netip.Addr{}, "", 0)
	r.Remove(first4, first6, "a") // nobody is there, and nothing happens

	r.Put(first4, first6, egress.Tenant{Sandbox: "a", Team: "t", Generation: 1})
	r.Put(second4, netip.Addr{}, egress.Tenant{Sandbox: "b", Generation: 1})
	expectTenant(t, &r, first4, "a", 1)
	expectTenant(t, &r, first6, "a", 1)
	expectTenant(t, &r, second4, "b", 1)
	expectTenant(t, &r, second6, "", 0)
	expectTenant(t, &r, netip.Addr{}, "", 0)

	r.Put(first4, first6, egress.Tenant{Sandbox: "a", Generation: 2})
	expectTenant(t, &r, first6, "a", 2)
	r.Remove(first4, first6, "a")
	expectTenant(t, &r, first4, "", 0)
	expectTenant(t, &r, first6, "", 0)
	expectTenant(t, &r, second4, "b", 1)
}

// What comes late still finds whom it is about, until the address has another.
func TestRegistryRemembersTheLastTenant(t *testing.T) {
	var r egress.Registry
	expectLast := func(sandbox string, hasPolicy bool) {
		t.Helper()
		got, ok := r.Last(first6)
		if ok != (sandbox != "") || got.Sandbox != sandbox || (got.Policy != nil) != hasPolicy {
			t.Errorf("the last tenant is %+v, %v; want %q", got, ok, sandbox)
		}
	}
	expectLast("", false)
	r.Put(first4, first6, egress.Tenant{Sandbox: "a", Policy: new(policy.Policy)})
	expectLast("a", true)
	r.Remove(first4, first6, "a")
	expectLast("a", false)
	expectTenant(t, &r, first6, "", 0)
	r.Put(first4, first6, egress.Tenant{Sandbox: "b", Policy: new(policy.Policy)})
	expectLast("b", true)
}

// A removal that comes late must not touch the address's next tenant.
func TestRegistryRemovesNobodyElse(t *testing.T) {
	var r egress.Registry
	r.Put(first4, first6, egress.Tenant{Sandbox: "next", Generation: 1})
	r.Remove(first4, first6, "gone")
	expectTenant(t, &r, first4, "next", 1)
	expectTenant(t, &r, first6, "next", 1)
}

// Every packet's connection asks: it must cost nothing to speak of.
func TestRegistryAnswersWithoutAllocation(t *testing.T) {
	var r egress.Registry
	r.Put(first4, first6, egress.Tenant{Sandbox: "a"})
	if n := testing.AllocsPerRun(100, func() { r.Tenant(first6); r.Tenant(second6) }); n != 0 {
		t.Errorf("two questions allocate %v times", n)
	}
}

// Both addresses change together, and readers never see a half.
func TestRegistryUnderChange(t *testing.T) {
	var r egress.Registry
	const rounds = 2000
	r.Put(first4, first6, egress.Tenant{Sandbox: "a"})
	var running sync.WaitGroup
	running.Go(func() {
		for n := range uint64(rounds) {
			r.Put(first4, first6, egress.Tenant{Sandbox: "a", Generation: n + 1})
		}
	})
	running.Go(func() {
		for range rounds {
			r.Put(second4, second6, egress.Tenant{Sandbox: "b"})
			r.Remove(second4, second6, "b")
		}
	})
	for seen := uint64(0); seen < rounds; {
		t4, ok4 := r.Tenant(first4)
		t6, ok6 := r.Tenant(first6)
		if !ok4 || !ok6 || t4.Generation < seen || t6.Generation < t4.Generation {
			t.Fatalf("after generation %d: %+v and %+v", seen, t4, t6)
		}
		seen = t6.Generation
	}
	running.Wait()
	expectTenant(t, &r, second4, "", 0)
}

func BenchmarkRegistry(b *testing.B) {
	var r egress.Registry
	addr4, addr6 := first4, first6
	for range 1000 {
		r.Put(addr4, addr6, egress.Tenant{Sandbox: "a"})
		addr4, addr6 = addr4.Next(), addr6.Next()
	}
	b.Run("tenant", func(b *testing.B) {
		for b.Loop() {
			r.Tenant(first6)
		}
	})
	b.Run("put", func(b *testing.B) {
		for b.Loop() {
			r.Put(first4, first6, egress.Tenant{Sandbox: "a"})
		}
	})
}
