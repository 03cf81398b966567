package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

// tenThousand is the largest document that is accepted by default.
func tenThousand(tb testing.TB) *policy.Policy {
	w := newWorld(1)
	doc := policy.Document{Default: policy.Allow}
	for i := range policy.DefaultMaxEntries {
		doc.AllowOut = append(doc.AllowOut, fmt.Sprintf("%d.%d.%d.0/24", 20+w.IntN(60), w.IntN(256), i%256))
		doc.DenyOut = append(doc.DenyOut, fmt.Sprintf("2606:%x:%x::/48", w.IntN(0xffff), i))
	}
	p, err := policy.Parse(doc, policy.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// tenThousandEach has as many names and addresses as one would ever write.
func tenThousandEach(tb testing.TB) *policy.Policy {
	doc := policy.Document{DenyOut: []string{policy.AllTraffic}}
	for i := range policy.DefaultMaxEntries {
		doc.AllowOut = append(doc.AllowOut, fmt.Sprintf("%d.%d.%d.0/24", 20+i%60, i/256, i%256))
		if i%2 == 0 {
			doc.AllowOut = append(doc.AllowOut, fmt.Sprintf("host%d.zone%d.example.com", i, i%100))
		} else {
			doc.AllowOut = append(doc.AllowOut, fmt.Sprintf("*.customer%d.example.net", i))
		}
	}
	// One entry of the greatest depth, so that the worst question walks it.
	doc.AllowOut = append(doc.AllowOut, "*."+strings.Repeat("x.", 123)+"test")
	p, err := policy.Parse(doc, policy.Options{MaxEntries: 3 * policy.DefaultMaxEntries})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// named are questions to tenThousandEach.
var named = map[string]string{
	"exact":    "host4242.zone42.example.com",
	"wildcard": "a.b.c.customer4243.example.net",
	"none":     "www.evil.example.org",
	"sibling":  "host4242.zone43.example.com",
}

func BenchmarkDecideName(b *testing.B) {
	p := tenThousandEach(b)
	for what, text := range named {
		name := mustName(b, text)
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.DecideName(name, policy.TCP, 443)
			}
		})
	}
	deepest := mustName(b, "y."+strings.Repeat("x.", 123)+"test")
	b.Run("124 labels", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.DecideName(deepest, policy.TCP, 443)
		}
	})
	b.Run("query", func(b *testing.B) {
		name := mustName(b, named["none"])
		b.ReportAllocs()
		for b.Loop() {
			p.DecideQuery(name)
		}
	})
	b.Run("address", func(b *testing.B) {
		f := flow("93.184.216.34:443")
		b.ReportAllocs()
		for b.Loop() {
			p.Decide(f)
		}
	})
}

// flowsAsked are questions to tenThousandEach about flows as a whole.
func flowsAsked(tb testing.TB) map[string]struct {
	name policy.Name
	flow policy.Flow
} {
	type asked = struct {
		name policy.Name
		flow policy.Flow
	}
	return map[string]asked{
		"allowed by name":    {mustName(tb, named["wildcard"]), flow("93.184.216.34:443")},
		"allowed by address": {mustName(tb, named["none"]), flow("20.0.0.1:443")},
		"denied":             {mustName(tb, named["none"]), flow("93.184.216.34:443")},
		"never":              {mustName(tb, named["exact"]), flow("10.0.0.1:443")},
		"v6":                 {mustName(tb, named["none"]), flow("[2606:4700::1]:443")},
		"no address":         {mustName(tb, named["none"]), policy.Flow{Proto: policy.TCP}},
	}
}

func BenchmarkDecideFlow(b *testing.B) {
	p := tenThousandEach(b)
	for what, asked := range flowsAsked(b) {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.DecideFlow(asked.name, asked.flow)
			}
		})
	}
}

// TestDecisionsAllocateNothing: with 10,000 addresses and 10,000 names no
// question costs memory. How long they take, the benchmarks say.
func TestDecisionsAllocateNothing(t *testing.T) {
	p := tenThousandEach(t)
	check := func(what string, ask func()) {
		t.Helper()
		if n := testing.AllocsPerRun(100, ask); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
	for what, asked := range flowsAsked(t) {
		check("DecideFlow, "+what, func() { p.DecideFlow(asked.name, asked.flow) })
		check("Decide, "+what, func() { p.Decide(asked.flow) })
		check("DecideName, "+what, func() { p.DecideName(asked.name, policy.TCP, 443) })
		check("DecideQuery, "+what, func() { p.DecideQuery(asked.name) })
	}
}

func BenchmarkParseName(b *testing.B) {
	for _, text := range []string{"api.github.com", "API.GitHub.com.", "xn--bcher-kva.example"} {
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := policy.ParseName(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWarnings(b *testing.B) {
	p := tenThousandEach(b)
	b.ReportAllocs()
	for b.Loop() {
		p.Warnings()
	}
}

func BenchmarkDecide(b *testing.B) {
	p := tenThousand(b)
	for name, dst := range map[string]string{"v4": "93.184.216.34:443", "v6": "[2606:4700:4700::1111]:443"} {
		flow := policy.Flow{Proto: policy.TCP, Dst: netip.MustParseAddrPort(dst)}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Decide(flow)
			}
		})
	}
}

func BenchmarkParse10000(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		tenThousand(b)
	}
}

func BenchmarkRanges10000(b *testing.B) {
	p := tenThousand(b)
	b.ReportAllocs()
	for b.Loop() {
		p.Ranges()
	}
}
