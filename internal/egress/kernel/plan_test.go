package kernel

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

var update = flag.Bool("update", false, "write the plans in testdata anew")

// golden are the plans that are kept as text.
func golden(t *testing.T) map[string]*policy.Policy {
	return map[string]*policy.Policy{
		"closed": nil,
		"open":   openPolicy(t),
		"deny-list": compile(t, policy.Document{
			Default: policy.Allow,
			DenyOut: []string{"8.8.8.8", "93.184.216.0/25", "93.184.216.128/25", "2606:4700::/32"},
		}),
		"allow-beats-deny": compile(t, policy.Document{
			Default:  policy.Allow,
			AllowOut: []string{"1.1.1.1", "2606:4700:4700::1111"},
			DenyOut:  []string{"1.0.0.0/8", "255.0.0.0/8", "2606:4700::/32"},
		}),
		"deny-all-but": compile(t, policy.Document{
			Default:  policy.Allow,
			AllowOut: []string{"8.8.8.0/24"},
			DenyOut:  []string{policy.AllTraffic},
		}),
		"names": compile(t, policy.Document{AllowOut: []string{"8.8.8.8", "example.com"}}),
		"names-and-open": compile(t, policy.Document{
			Default: policy.Allow, AllowOut: []string{"example.com"}, DenyOut: []string{"8.8.8.8"}, Rules: mention(),
		}),
		"rules":        compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{"8.8.8.8"}, Rules: strict()}),
		"upstream":     compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{"8.8.8.8"}, EgressProxy: upstream()}),
		"internet-off": compile(t, policy.Document{}),
	}
}

func testLayout(t testing.TB) layout {
	t.Helper()
	range4, range6 := defaultRanges()
	l, err := newLayout("test", "/run/moat/test", range4, range6)
	if err != nil {
		t.Fatal(err)
	}
	l.names = publicNames()
	return l
}

func TestPlan(t *testing.T) {
	l := testLayout(t)
	slot, err := l.slot(12)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"shared": planBase(l, never(t)).String()}
	for name, p := range golden(t) {
		plan, err := planSlot(slot, p, 1)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = plan.String()
	}
	for name, got := range texts {
		file := filepath.Join("testdata", name+".nft")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: the plan is\n%s\nwant\n%s", name, got, want)
		}
	}
}

// TestKernelHoldsThePlan lets nft list what the kernel was given and compares
// that with the text of the plan. So the text is true, and whoever lists the
// rules of a machine can read them.
func TestKernelHoldsThePlan(t *testing.T) {
	n := open(t)
	want := blocks(planBase(n.layout, n.never).String())
	for _, p := range golden(t) {
		s := create(t, n, p)
		plan, err := planSlot(s, p, 1)
		if err != nil {
			t.Fatal(err)
		}
		for name, block := range blocks(plan.String()) {
			if strings.HasPrefix(name, "inet map") {
				want[name] = append(want[name], block...)
			} else {
				want[name] = block
			}
		}
	}
	got := blocks(nft(t, "-s", "list", "ruleset"))
	for name, block := range want {
		listed, text := strings.Join(got[name], "\n"), strings.Join(block, "\n")
		if strings.HasPrefix(name, "inet map") {
			for _, line := range block {
				if !strings.Contains(listed, elementOf(line)) {
					t.Errorf("%s lacks %s:\n%s", name, elementOf(line), listed)
				}
			}
		} else if listed != text {
			t.Errorf("%s is\n%s\nwant\n%s", name, listed, text)
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Errorf("the kernel has %s, which nobody planned", name)
		}
	}
}

// elementOf returns the element in the text of a map that has one.
func elementOf(line string) string {
	return strings.TrimSuffix(strings.TrimPrefix(line, "elements = { "), " }")
}

var (
	comments = regexp.MustCompile(` comment "[^"]*"`)
	wrapped  = regexp.MustCompile(`,\s+`)
)

// blocks takes a listing apart: from "FAMILY KIND NAME" to the lines inside.
func blocks(listing string) map[string][]string {
	listing = wrapped.ReplaceAllString(comments.ReplaceAllString(listing, ""), ", ")
	found := map[string][]string{}
	family, name := "", ""
	for line := range strings.Lines(listing) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "}":
		case words[0] == "table":
			family, name = words[1], ""
		case len(words) == 3 && words[2] == "{":
			name = family + " " + words[0] + " " + words[1]
			found[name] = []string{}
		case name != "" && !strings.HasPrefix(line, "\t\ttype ifname"):
			found[name] = append(found[name], strings.TrimSpace(line))
		}
	}
	return found
}

func TestLayout(t *testing.T) {
	l := testLayout(t)
	if got := l.maxIndex(); got != 32767 {
		t.Errorf("%d slots, want 32767", got)
	}
	s, err := l.slot(32767)
	if err != nil {
		t.Fatal(err)
	}
	if s.IP4 != addr("198.18.255.255") || s.Gateway4 != addr("198.18.255.254") ||
		s.IP6 != addr("fd6d:6f61:7400::ffff") || s.Gateway6 != addr("fd6d:6f61:7400::fffe") ||
		s.HostIf != "mtest-32767" || s.NetNS != "/run/moat/test/slot-32767" ||
		s.MAC.String() != "02:6d:6f:20:7f:ff" || s.GatewayMAC.String() != "02:6d:6f:10:7f:ff" {
		t.Errorf("slot 32767 is %+v", s)
	}
	for _, index := range []int{-1, 0, 32768} {
		if s, err := l.slot(index); err == nil {
			t.Errorf("there is a slot %d: %+v", index, s)
		}
	}
	for name, want := range map[string]int{"mtest-1": 1, "mtest-32767": 32767, "mtest-01": 0, "mtest-0": 0, "mtest-32768": 0, "mtest-": 0, "mtest-1a": 0, "mother-1": 0, "eth0": 0} {
		if got, ok := l.indexOfIf(name); got != want || ok != (want > 0) {
			t.Errorf("%s is slot %d, %v, want %d", name, got, ok, want)
		}
	}
}

func TestLayoutRefuses(t *testing.T) {
	range4, range6 := defaultRanges()
	for name, try := range map[string]func() (layout, error){
		"no instance":    func() (layout, error) { return newLayout("", "/x", range4, range6) },
		"long instance":  func() (layout, error) { return newLayout("abcdefghi", "/x", range4, range6) },
		"upper case":     func() (layout, error) { return newLayout("Moat", "/x", range4, range6) },
		"relative dir":   func() (layout, error) { return newLayout("moat", "x", range4, range6) },
		"v6 as range4":   func() (layout, error) { return newLayout("moat", "/x", range6, range6) },
		"v4 as range6":   func() (layout, error) { return newLayout("moat", "/x", range4, range4) },
		"no room in v4":  func() (layout, error) { return newLayout("moat", "/x", netip.MustParsePrefix("10.0.0.0/31"), range6) },
		"no room in v6":  func() (layout, error) { return newLayout("moat", "/x", range4, netip.MustParsePrefix("fd00::/127")) },
		"v6 range large": func() (layout, error) { return newLayout("moat", "/x", range4, netip.MustParsePrefix("fd00::/48")) },
		"no ranges":      func() (layout, error) { return newLayout("moat", "/x", netip.Prefix{}, netip.Prefix{}) },
	} {
		if l, err := try(); err == nil {
			t.Errorf("%s: accepted as %+v", name, l)
		}
	}
}
