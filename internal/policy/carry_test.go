package policy_test

import (
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

func TestCarry(t *testing.T) {
	if got := (*policy.Policy)(nil).Carry(); got != policy.CarryNone {
		t.Errorf("without a policy the proxy carries %v", got)
	}
	for name, test := range map[string]struct {
		doc  policy.Document
		want policy.Carry
	}{
		"addresses": {policy.Document{AllowOut: []string{"8.8.8.8"}}, policy.CarryNone},
		"a name":    {policy.Document{AllowOut: []string{"8.8.8.8", "example.com"}}, policy.CarryWeb},
	} {
		p, err := policy.Parse(test.doc, policy.Options{Names: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Carry(); got != test.want {
			t.Errorf("%s: the proxy carries %v, want %v", name, got, test.want)
		}
	}
}
