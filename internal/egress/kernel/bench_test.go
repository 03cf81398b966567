package kernel

import (
	"context"
	"fmt"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

func BenchmarkCreate(b *testing.B) {
	n := open(b)
	for b.Loop() {
		s, err := n.Create(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := n.Destroy(context.Background(), s); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkDestroy(b *testing.B) {
	n := open(b)
	for b.Loop() {
		b.StopTimer()
		s, err := n.Create(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := n.Destroy(context.Background(), s); err != nil {
			b.Fatal(err)
		}
	}
}

// manyEntries is a policy of so many prefixes in each list.
func manyEntries(b testing.TB, entries int) *policy.Policy {
	doc := policy.Document{Default: policy.Allow}
	for i := range entries {
		doc.AllowOut = append(doc.AllowOut, fmt.Sprintf("60.%d.%d.1", i/250, i%250))
		doc.DenyOut = append(doc.DenyOut, fmt.Sprintf("60.%d.%d.0/24", i/250, i%250))
	}
	return compile(b, doc)
}

// BenchmarkApplyFirst is what a create waits for: a policy for a slot that is
// closed.
func BenchmarkApplyFirst(b *testing.B) {
	n := open(b)
	s := create(b, n, nil)
	for _, entries := range []int{0, 20, 500, 5000} {
		p := manyEntries(b, entries)
		b.Run(fmt.Sprintf("%d", 2*entries), func(b *testing.B) {
			for b.Loop() {
				apply(b, n, s, p)
				b.StopTimer()
				apply(b, n, s, nil)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkApplyUpdate replaces the policy of an open slot, which includes the
// search for flows to end.
func BenchmarkApplyUpdate(b *testing.B) {
	n := open(b)
	s := create(b, n, openPolicy(b))
	for _, entries := range []int{0, 20, 500, 5000} {
		p := manyEntries(b, entries)
		b.Run(fmt.Sprintf("%d", 2*entries), func(b *testing.B) {
			for b.Loop() {
				apply(b, n, s, p)
			}
		})
	}
}

func BenchmarkAdopt100(b *testing.B) {
	n := open(b)
	p := manyEntries(b, 20)
	var tenants []Tenant
	for range 100 {
		tenants = append(tenants, Tenant{Slot: create(b, n, p), Policy: p})
	}
	for b.Loop() {
		n.slots = map[int]*state{}
		if err := n.Adopt(context.Background(), tenants); err != nil {
			b.Fatal(err)
		}
	}
}
