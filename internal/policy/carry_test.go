package policy_test

import (
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

func TestCarry(t *testing.T) {
	if got := (*policy.Policy)(nil).Carry(); got != policy.CarryNone {
		t.Errorf("without a policy the proxy carries %v", got)
	}
	rules := policy.Rules{Hosts: []policy.HostRule{{Host: "example.com", Strict: true}}}
	for name, test := range map[string]struct {
		doc  policy.Document
		want policy.Carry
	}{
		"addresses": {policy.Document{AllowOut: []string{"8.8.8.8"}}, policy.CarryNone},
		"a name":    {policy.Document{AllowOut: []string{"8.8.8.8", "example.com"}}, policy.CarryWeb},
		"a rule":    {policy.Document{AllowOut: []string{"8.8.8.8"}, Rules: rules}, policy.CarryAllWeb},
		"a rule of no effect": {policy.Document{
			Rules: policy.Rules{Hosts: []policy.HostRule{{Host: "example.com"}}},
		}, policy.CarryNone},
		"an upstream proxy": {policy.Document{
			Rules: rules, EgressProxy: &policy.EgressProxy{Address: "proxy.example.com:1080"},
		}, policy.CarryTCP},
	} {
		p, err := policy.Parse(test.doc, policy.Options{Rules: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Carry(); got != test.want {
			t.Errorf("%s: the proxy carries %v, want %v", name, got, test.want)
		}
	}
}
