package api_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/moat-sandbox/moat/api"
)

// Rules keep their shape, and what is no shape of theirs is an error.
func TestRulesKeepTheirShape(t *testing.T) {
	for text, want := range map[string]api.Rules{
		`{"x.com":[{"transform":{"headers":{"A":"b"}}}]}`: {Hosts: map[string][]api.HostRule{
			"x.com": {{Transform: api.Transform{Headers: map[string]string{"A": "b"}}}},
		}},
		`[{"name":"r","match":{"host":"x.com"},"action":{"allow":true}}]`: {Ordered: []api.OrderedRule{
			{Name: "r", Match: api.Match{Host: "x.com"}, Action: api.Action{Allow: true}},
		}},
		`{}`: {Hosts: map[string][]api.HostRule{}},
		`[]`: {Ordered: []api.OrderedRule{}},
	} {
		var got api.Rules
		if err := json.Unmarshal([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s became %+v, %v", text, got, err)
		}
		if again, err := json.Marshal(got); err != nil || string(again) != text {
			t.Errorf("%s is written as %s, %v", text, again, err)
		}
	}
	var rules api.Rules
	if err := json.Unmarshal([]byte(`"text"`), &rules); err == nil {
		t.Error("a text became rules")
	}
	if raw, err := json.Marshal(api.Rules{}); err != nil || string(raw) != "{}" {
		t.Errorf("no rules are written as %s, %v", raw, err)
	}
	both := api.Rules{Hosts: map[string][]api.HostRule{"x.com": nil}, Ordered: []api.OrderedRule{{Name: "r"}}}
	if raw, err := json.Marshal(both); err == nil {
		t.Errorf("two shapes at once are written as %s", raw)
	}
}
