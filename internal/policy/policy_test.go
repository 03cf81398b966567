package policy_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

func flow(dst string) policy.Flow {
	return policy.Flow{Proto: policy.TCP, Dst: netip.MustParseAddrPort(dst)}
}

func TestNothingDenies(t *testing.T) {
	var p *policy.Policy
	d := p.Decide(flow("1.1.1.1:443"))
	if d.Verdict != policy.Deny || d.Rule != policy.RuleNone || d.Reason() != "no policy is in force" {
		t.Errorf("nil policy: %v, %v, %s", d.Verdict, d.Rule, d.Reason())
	}
	if r := p.Ranges(); r.Default != policy.Deny || r.Allow4 != nil {
		t.Errorf("nil policy has ranges %+v", r)
	}
	if (policy.Decision{}).Verdict != policy.Deny {
		t.Error("the zero decision allows")
	}
	var never *policy.Never
	if !never.Contains(netip.MustParseAddr("1.1.1.1")) {
		t.Error("a nil table reaches something")
	}
	if v4, v6 := never.Ranges(); len(v4) != 1 || len(v6) != 1 {
		t.Errorf("a nil table is %v and %v, want everything", v4, v6)
	}
}

func TestDecideInvalidDestination(t *testing.T) {
	p, err := policy.Parse(policy.Document{Default: policy.Allow}, policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, dst := range map[string]netip.Addr{
		"none":      {},
		"with zone": netip.MustParseAddr("2606::1%eth0"),
	} {
		if d := p.Decide(policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(dst, 1)}); d.Verdict != policy.Deny || d.Reason() == "" {
			t.Errorf("%s: %v (%s)", name, d.Verdict, d.Reason())
		}
	}
}

func TestDecideAllocatesNothing(t *testing.T) {
	p := tenThousand(t)
	for _, dst := range []string{"1.1.1.1:1", "30.0.0.1:1", "10.0.0.1:1", "[2606::1]:1"} {
		f := flow(dst)
		if n := testing.AllocsPerRun(100, func() { p.Decide(f) }); n != 0 {
			t.Errorf("%s: %v allocations", dst, n)
		}
	}
	p = tenThousandEach(t)
	for what, text := range named {
		if n := testing.AllocsPerRun(100, func() {
			name, _ := policy.ParseName(text) // in normal form already
			p.DecideName(name, policy.TCP, 443)
			p.DecideQuery(name)
		}); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

func TestEntryErrors(t *testing.T) {
	long := strings.Repeat("9", 5000)
	for _, test := range []struct {
		name string
		doc  policy.Document
		opts policy.Options
		want policy.EntryError
		text string
	}{{
		name: "empty",
		doc:  policy.Document{DenyOut: []string{""}},
		want: policy.EntryError{Field: "denyOut", Entry: `""`, Reason: "the entry is empty"},
		text: `invalid denied CIDR "": the entry is empty`,
	}, {
		name: "spaces",
		doc:  policy.Document{AllowOut: []string{" 1.1.1.1"}},
		want: policy.EntryError{Field: "allowOut", Entry: `" 1.1.1.1"`, Reason: "not an IP address or CIDR"}, // whatever ends in a number is meant as one
		text: `invalid allowed address " 1.1.1.1": not an IP address or CIDR`,
	}, {
		name: "control characters",
		doc:  policy.Document{AllowOut: []string{"1.1.1.1\r\n"}},
		want: policy.EntryError{Field: "allowOut", Entry: `"1.1.1.1\r\n"`, Reason: `not an IP address, CIDR or domain name: '\r' is not valid in a name`},
		text: `invalid allowed address "1.1.1.1\r\n": not an IP address, CIDR or domain name: '\r' is not valid in a name`,
	}, {
		name: "very long",
		doc:  policy.Document{AllowOut: []string{long}},
		want: policy.EntryError{Field: "allowOut", Entry: long[:100] + "...", Reason: "not an IP address or CIDR"},
		text: "invalid allowed address " + long[:100] + "...: not an IP address or CIDR",
	}, {
		name: "too many",
		doc:  policy.Document{DenyOut: []string{"1.1.1.1", "1.1.1.1", "1.1.1.1"}},
		opts: policy.Options{MaxEntries: 2},
		want: policy.EntryError{Field: "denyOut", Reason: "3 entries, at most 2 are accepted"},
		text: "denyOut: 3 entries, at most 2 are accepted",
	}, {
		name: "unknown default",
		doc:  policy.Document{Default: 7},
		want: policy.EntryError{Field: "default", Reason: "unknown verdict 7"},
		text: "default: unknown verdict 7",
	}} {
		t.Run(test.name, func(t *testing.T) {
			p, err := policy.Parse(test.doc, test.opts)
			var entry *policy.EntryError
			if p != nil || !errors.As(err, &entry) || *entry != test.want || err.Error() != test.text {
				t.Errorf("got %v, %v, want %s", p, err, test.text)
			}
		})
	}
}

func TestDefaultLimit(t *testing.T) {
	doc := policy.Document{AllowOut: make([]string, policy.DefaultMaxEntries+1)}
	for i := range doc.AllowOut {
		doc.AllowOut[i] = "1.1.1.1"
	}
	if _, err := policy.Parse(doc, policy.Options{}); err == nil {
		t.Errorf("%d entries are accepted", len(doc.AllowOut))
	}
	doc.AllowOut = doc.AllowOut[1:]
	if _, err := policy.Parse(doc, policy.Options{}); err != nil {
		t.Errorf("%d entries are refused: %v", len(doc.AllowOut), err)
	}
}

func TestExemptionsThatCannotBeKept(t *testing.T) {
	for _, exempt := range []string{"127.0.0.0/8", "127.0.0.1/32", "0.0.0.0/0", "224.0.0.0/24", "::/0", "::ffff:0:0/96", "fe80::/64", "255.255.255.255/32"} {
		prefix := netip.MustParsePrefix(exempt)
		if n, err := policy.NewNever(nil, []netip.Prefix{prefix}); err == nil || n != nil {
			t.Errorf("%s can be exempted", exempt)
		} else if !strings.Contains(err.Error(), prefix.String()) {
			t.Errorf("the error does not name %v: %v", prefix, err)
		}
	}
	for name, prefix := range map[string]netip.Prefix{"zero": {}, "mapped": netip.MustParsePrefix("::ffff:1.2.3.4/128")} {
		if _, err := policy.NewNever(nil, []netip.Prefix{prefix}); err == nil {
			t.Errorf("%s prefix can be exempted", name)
		}
		if _, err := policy.NewNever([]policy.Range{{Prefix: prefix}}, nil); err == nil {
			t.Errorf("%s prefix is taken as a range of the node", name)
		}
	}
}

// What moat uses itself stays in the table also where an exemption covers it.
func TestReservedAddressesCannotBeExempted(t *testing.T) {
	n, err := policy.NewNever(nil, []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd00::/8")})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		policy.Synthetic().Addr().String(): true, "198.19.127.255": true, "198.19.255.1": true, "fd6d:6f61:7400:1::1": true,
		"198.18.0.1": false, "fd00::1": false,
	} {
		if got := n.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is never reachable: %v, want %v", addr, got, want)
		}
	}
}

// The kernel's view must have room for half-open intervals: ranges that touch
// are one range.
func TestRangesAreMerged(t *testing.T) {
	p, err := policy.Parse(policy.Document{
		AllowOut: []string{"8.8.8.0/25", "8.8.8.128/25", "8.8.8.8", "255.255.255.255", "2606::/64", "2606:0:0:1::/64"},
		DenyOut:  []string{policy.AllTraffic},
		Default:  policy.Allow,
	}, policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := p.Ranges()
	for _, list := range []struct {
		name string
		got  any
		want string
	}{
		{"allow4", r.Allow4, `["8.8.8.0-8.8.8.255","255.255.255.255-255.255.255.255"]`},
		{"allow6", r.Allow6, `["2606::-2606::1:ffff:ffff:ffff:ffff"]`},
		{"deny4", r.Deny4, `["0.0.0.0-255.255.255.255"]`},
		{"deny6", r.Deny6, `["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]`},
	} {
		if got, err := json.Marshal(list.got); err != nil || string(got) != list.want {
			t.Errorf("%s: %s, %v, want %s", list.name, got, err, list.want)
		}
	}
}

func TestDocumentIsStoredInWords(t *testing.T) {
	want := policy.Document{AllowOut: []string{"1.1.1.1"}, Default: policy.Allow}
	text, err := json.Marshal(want)
	if err != nil || string(text) != `{"allowOut":["1.1.1.1"],"default":"allow"}` {
		t.Fatalf("%s, %v", text, err)
	}
	var got policy.Document
	if err := json.Unmarshal(text, &got); err != nil || got.Default != policy.Allow {
		t.Errorf("read back %+v, %v", got, err)
	}
	got = policy.Document{Default: policy.Allow}
	if err := json.Unmarshal([]byte(`{"default":"maybe"}`), &got); err == nil || got.Default != policy.Deny {
		t.Errorf("an unknown verdict gives %+v, %v", got, err)
	}
	if err := json.Unmarshal([]byte(`{}`), &got); err != nil || got.Default != policy.Deny {
		t.Errorf("a missing verdict gives %+v, %v", got, err)
	}
}
