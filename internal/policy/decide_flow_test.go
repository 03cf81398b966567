package policy_test

import (
	"net/netip"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

func TestDecideFlow(t *testing.T) {
	unknown := policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(netip.Addr{}, 443)}
	udp := policy.Flow{Proto: policy.UDP, Dst: unknown.Dst}
	names := policy.Document{AllowOut: []string{"*.example.com", "1.1.1.1"}, DenyOut: []string{policy.AllTraffic}}
	open := policy.Document{Default: policy.Allow, DenyOut: []string{"8.8.8.8"}}
	set := policy.Rules{Hosts: []policy.HostRule{{Host: "api.org", Strict: true}}}
	ruled := policy.Document{AllowOut: []string{"1.1.1.1"}, DenyOut: []string{policy.AllTraffic}, Rules: set}
	openRuled := policy.Document{Default: policy.Allow, DenyOut: []string{"8.8.8.8"}, Rules: set}
	for _, c := range []struct {
		doc    policy.Document
		name   string
		flow   policy.Flow
		want   policy.Verdict
		reason string
	}{
		{names, "a.example.com", flow("93.184.216.34:443"), policy.Allow, "*.example.com in allowOut allows a.example.com"},
		{names, "a.example.com", unknown, policy.Allow, "*.example.com in allowOut allows a.example.com"},
		{names, "evil.org", flow("1.1.1.1:443"), policy.Allow, "1.1.1.1 is in allowOut entry 1.1.1.1"},
		{names, "evil.org", flow("8.8.8.8:443"), policy.Deny, "no entry of allowOut names evil.org"},
		{names, "evil.org", unknown, policy.Deny, "no entry of allowOut names evil.org"},
		{names, "a.example.com", flow("10.0.0.1:443"), policy.Deny, "10.0.0.1 is never reachable: private network (10.0.0.0/8)"},
		// What we made up for the name before it was allowed: the proxy looks it up.
		{names, "a.example.com", flow("198.19.1.1:443"), policy.Allow, "*.example.com in allowOut allows a.example.com"},
		{names, "a.example.com", flow("93.184.216.34:22"), policy.Deny, "names in allowOut work for TCP on ports 80 and 443 only, so a.example.com cannot be reached by name on tcp port 22"},
		{names, "a.example.com", udp, policy.Deny, "names in allowOut work for TCP on ports 80 and 443 only, so a.example.com cannot be reached by name on udp port 443"},
		{open, "evil.org", unknown, policy.Allow, "evil.org is in no list and the default is allow"},
		{open, "evil.org", udp, policy.Allow, "evil.org is in no list and the default is allow"},
		{open, "evil.org", flow("8.8.8.8:443"), policy.Deny, "no entry of allowOut names evil.org"},
		// What rules decide about goes to addresses that the name has, and to none
		// of the sandbox's choice.
		{ruled, "evil.org", flow("1.1.1.1:443"), policy.Allow, "1.1.1.1 is in allowOut entry 1.1.1.1"},
		{ruled, "api.org", flow("1.1.1.1:443"), policy.Deny, "no entry of allowOut names api.org"},
		{ruled, "api.org", flow("1.1.1.1:80"), policy.Deny, "no entry of allowOut names api.org"},
		{ruled, "api.org", flow("1.1.1.1:22"), policy.Allow, "1.1.1.1 is in allowOut entry 1.1.1.1"},
		{openRuled, "api.org", unknown, policy.Allow, "api.org is in no list and the default is allow"},
		{openRuled, "api.org", flow("9.9.9.9:443"), policy.Allow, "9.9.9.9 is in no list and the default is allow"},
		{openRuled, "api.org", flow("8.8.8.8:443"), policy.Deny, "8.8.8.8 is in denyOut entry 8.8.8.8"},
	} {
		p, err := policy.Parse(c.doc, policy.Options{Rules: true})
		if err != nil {
			t.Fatal(err)
		}
		d := p.DecideFlow(mustName(t, c.name), c.flow)
		if d.Verdict != c.want || d.Reason() != c.reason {
			t.Errorf("%s %v under %+v: %v because %s\nwant %v because %s", c.name, c.flow, c.doc, d.Verdict, d.Reason(), c.want, c.reason)
		}
	}
	var none *policy.Policy
	if d := none.DecideFlow(mustName(t, "a.b"), unknown); d.Verdict != policy.Deny || d.Reason() != "no policy is in force" {
		t.Errorf("without a policy: %v because %s", d.Verdict, d.Reason())
	}
}
