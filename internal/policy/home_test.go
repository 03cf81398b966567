package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

// home has public URLs below moat.test: in the clear on ports 80 and 6628, over
// TLS on port 8443.
func home(t *testing.T) *policy.Home {
	t.Helper()
	h, err := policy.NewHome(func(name string) bool {
		label, below, _ := strings.Cut(name, ".")
		return below == "moat.test" && strings.HasPrefix(label, "3000-")
	}, map[uint16]uint16{80: policy.PortHTTP, 6628: policy.PortHTTP, 8443: policy.PortHTTPS})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func withHome(t *testing.T, doc policy.Document) *policy.Policy {
	t.Helper()
	p, err := policy.Parse(doc, policy.Options{Home: home(t), Rules: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAttack26HomeIsJudgedByName: a public URL of the server is reached where the
// policy allows its name, on the ports where there are public URLs; the address
// that stands for it is as unreachable as ever.
func TestAttack26HomeIsJudgedByName(t *testing.T) {
	home4, home6 := policy.HomeAddrs()
	at := func(addr netip.Addr, port uint16) policy.Flow {
		return policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(addr, port)}
	}
	unknown := netip.Addr{}
	open := policy.Document{Default: policy.Allow, DenyOut: []string{"8.8.8.8"}}
	names := policy.Document{AllowOut: []string{"*.moat.test"}}
	other := policy.Document{AllowOut: []string{"example.com"}}
	rules := policy.Document{Rules: policy.Rules{Ordered: []policy.OrderedRule{{Name: "web", Allow: true, Match: policy.Match{Host: "*.moat.test", Scheme: "http"}}}}}
	const ours, api = "3000-abc.moat.test", "api.moat.test"
	for _, c := range []struct {
		doc  policy.Document
		name string
		flow policy.Flow
		want policy.Verdict
	}{
		{open, ours, at(home4, 6628), policy.Allow},
		{open, ours, at(home6, 8443), policy.Allow},
		{open, ours, at(unknown, 8443), policy.Allow},
		{open, ours, at(home4, 22), policy.Deny},
		{open, ours, at(home4, 443), policy.Deny}, // nothing is there
		{open, api, at(home4, 80), policy.Deny},
		{open, ours, policy.Flow{Proto: policy.UDP, Dst: netip.AddrPortFrom(home4, 8443)}, policy.Deny},
		{open, ours, at(netip.MustParseAddr("10.0.0.1"), 80), policy.Deny},
		{names, ours, at(home4, 6628), policy.Allow},
		{names, ours, at(home4, 8443), policy.Allow},
		{names, ours, at(unknown, 6628), policy.Allow},
		{names, api, at(unknown, 6628), policy.Deny},
		{names, api, at(home4, 80), policy.Deny},
		{other, ours, at(home4, 80), policy.Deny},
		{rules, ours, at(home4, 6628), policy.Allow},
		{rules, ours, at(home4, 8443), policy.Deny},
		{policy.Document{}, ours, at(home4, 80), policy.Deny},
	} {
		if d := withHome(t, c.doc).DecideFlow(mustName(t, c.name), c.flow); d.Verdict != c.want {
			t.Errorf("%s %v under %+v: %v because %s", c.name, c.flow, c.doc, d.Verdict, d.Reason())
		}
	}
	for _, addr := range []netip.Addr{home4, home6} {
		d := withHome(t, policy.Document{Default: policy.Allow, AllowOut: []string{"198.18.0.0/15"}}).Decide(at(addr, 80))
		if d.Verdict != policy.Deny || d.Rule != policy.RuleNever {
			t.Errorf("%v by address: %v by %v", addr, d.Verdict, d.Rule)
		}
	}
}

// Rules about requests hold for public URLs on every port where these are.
func TestHomeRequests(t *testing.T) {
	p := withHome(t, policy.Document{Rules: policy.Rules{Ordered: []policy.OrderedRule{
		{Name: "read", Allow: true, Match: policy.Match{Host: "3000-abc.moat.test", Methods: []string{"GET"}}},
	}}})
	name := mustName(t, "3000-abc.moat.test")
	for _, port := range []uint16{80, 6628} {
		for method, want := range map[string]policy.Verdict{"GET": policy.Allow, "POST": policy.Deny} {
			a := p.Request(policy.Request{Scheme: "http", Method: method, Name: name, Port: port, Path: "/"})
			if a.Verdict != want {
				t.Errorf("%s at port %d: %v because %s", method, port, a.Verdict, a.Reason())
			}
		}
	}
	if a := p.Request(policy.Request{Scheme: "http", Method: "GET", Name: name, Port: 8080, Path: "/"}); a.Verdict != policy.Deny {
		t.Errorf("at a port where nothing is: %s", a.Reason())
	}
}

func TestHomePorts(t *testing.T) {
	home4, home6 := policy.HomeAddrs()
	p, none := withHome(t, policy.Document{}), (*policy.Policy)(nil)
	elsewhere := netip.MustParseAddr("1.1.1.1")
	for _, c := range []struct {
		p    *policy.Policy
		addr netip.Addr
		port uint16
		want uint16
	}{
		{p, home4, 6628, 80}, {p, home6, 8443, 443}, {p, home4, 80, 80}, {p, home4, 443, 443}, {p, home4, 22, 0},
		{p, elsewhere, 6628, 0}, {p, elsewhere, 443, 443}, {none, home4, 6628, 0}, {none, home4, 80, 80},
	} {
		if got := c.p.WebPort(netip.AddrPortFrom(c.addr, c.port)); got != c.want {
			t.Errorf("port %d of %v counts as %d, want %d", c.port, c.addr, got, c.want)
		}
	}
	if none.IsPublicURL(mustName(t, "3000-abc.moat.test")) || p.IsPublicURL(policy.Name{}) || p.IsPublicURL(mustName(t, "moat.test")) {
		t.Error("a name is taken for one of public URLs")
	}
	for _, wrong := range []map[uint16]uint16{{8080: 8080}, {443: policy.PortHTTP}, {80: policy.PortHTTPS}} {
		if _, err := policy.NewHome(func(string) bool { return true }, wrong); err == nil {
			t.Errorf("%v is accepted", wrong)
		}
	}
	if _, err := policy.NewHome(nil, nil); err == nil {
		t.Error("no names are accepted")
	}
}
