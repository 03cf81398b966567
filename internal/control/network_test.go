package control

import (
	"errors"
	"net/http"
	"reflect"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

func TestUpdateNetworkReplacesAll(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"allow_internet_access":false,"network":{"allowOut":["1.1.1.1"]}`).SandboxID
	on, off := true, false
	for i, test := range []struct {
		body     string
		document policy.Document
		internet *bool
	}{
		{`{"denyOut":["8.8.8.8"]}`, policy.Document{DenyOut: []string{"8.8.8.8"}, Default: policy.Allow}, nil},
		{`{"allow_internet_access":false,"allowOut":["2001:db8::/32"]}`, policy.Document{AllowOut: []string{"2001:db8::/32"}}, &off},
		{`{"allowInternetAccess":true}`, policy.Document{Default: policy.Allow}, &on},
		{`{"allowInternetAccess":false,"allow_internet_access":false}`, policy.Document{}, &off},
		{`{"allow_out":["1.1.1.1"],"deny_out":["0.0.0.0/0"]}`, policy.Document{AllowOut: []string{"1.1.1.1"}, DenyOut: []string{"0.0.0.0/0"}, Default: policy.Allow}, nil},
		{`{"rules":{},"egressProxy":null,"allowPublicTraffic":true,"maskRequestHost":"","denyOut":["1.1.1.1"]}`, policy.Document{DenyOut: []string{"1.1.1.1"}, Default: policy.Allow}, nil},
		{`{}`, policy.Document{Default: policy.Allow}, nil},
	} {
		done := r.send(keyA, "PUT", "/sandboxes/"+id+"/network", test.body).want(http.StatusNoContent)
		record := r.record(id)
		if !reflect.DeepEqual(record.Network, test.document) || !reflect.DeepEqual(record.InternetAccess, test.internet) {
			t.Errorf("%s: stored %+v, internet %v", test.body, record.Network, record.InternetAccess)
		}
		if got, want := done.header.Get(api.HeaderNetworkGeneration), string(rune('2'+i)); got != want {
			t.Errorf("%s: generation %q, want %q", test.body, got, want)
		}
		if got := done.header.Get(api.HeaderFlowsCut); got != "3" {
			t.Errorf("%s: flows cut %q, want 3", test.body, got)
		}
	}
}

// denyAllMissing is E2B's answer to names without a denial of all else, word
// for word.
const denyAllMissing = "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic."

// E2B's rules come with the create: an update that says nothing of them leaves
// them, and what has a rule stays allowed without a denial of all else. One that
// does replaces them. Cube's are cleared as all that is left out.
func TestUpdateKeepsWhatHasRules(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	path := "/sandboxes/" + id + "/network"
	rules := policy.Rules{Hosts: []policy.HostRule{{Host: "api.example.com", Strict: true}}}
	r.send(keyA, "PUT", path, `{"allowOut":["api.example.com"]}`).want(http.StatusBadRequest, denyAllMissing)
	r.change(id, func(s *store.Sandbox) { s.Network.Rules = rules })
	for range 2 {
		r.send(keyA, "PUT", path, `{"allowOut":["api.example.com"]}`).want(http.StatusNoContent)
		if got := r.record(id).Network.Rules; !reflect.DeepEqual(got, rules) {
			t.Errorf("stored rules: %+v", got)
		}
	}
	r.send(keyA, "PUT", path, `{"allowOut":["other.example.com"]}`).want(http.StatusBadRequest, denyAllMissing)
	r.send(keyA, "PUT", path, `{"allowOut":["api.example.com"],"rules":{}}`).want(http.StatusBadRequest, denyAllMissing)
	r.send(keyA, "PUT", path, `{"allowOut":["other.example.com"],"rules":{"other.example.com":[]}}`).want(http.StatusNoContent)
	if got := r.record(id).Network.Rules.Hosts; len(got) != 1 || got[0].Host != "other.example.com" {
		t.Errorf("replaced rules: %+v", got)
	}
	r.send(keyA, "PUT", path, `{"rules":[{"name":"r","match":{"host":"x.com"},"action":{"allow":true}}]}`).want(http.StatusNoContent)
	r.send(keyA, "PUT", path, `{"rules":null}`).want(http.StatusNoContent)
	if got := r.record(id).Network.Rules; got.Ordered != nil || got.Hosts != nil {
		t.Errorf("cleared rules: %+v", got)
	}
}

func TestGetShowsTheNetworkInForce(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"]}`).SandboxID
	show := func() api.SandboxDetail {
		return decodeAs[api.SandboxDetail](r.send(keyA, "GET", "/sandboxes/"+id, "").want(http.StatusOK))
	}
	want := &api.Network{AllowOut: []string{"1.1.1.1"}, DenyOut: []string{"0.0.0.0/0"}}
	if got := show().Network; !reflect.DeepEqual(got, want) {
		t.Errorf("network %+v, want %+v", got, want)
	}
	r.send(keyA, "PUT", "/sandboxes/"+id+"/network", `{}`).want(http.StatusNoContent)
	if got := show().Network; got != nil {
		t.Errorf("network %+v after clearing, want none", got)
	}
}

func TestUpdateNetworkRefusals(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"denyOut":["8.8.8.8"]}`).SandboxID
	before := r.record(id)
	path := "/sandboxes/" + id + "/network"
	for body, text := range map[string]string{
		``:                                     "empty",
		`[]`:                                   "must be a JSON object",
		`{"denyOut":["x.com"]}`:                "invalid denied CIDR x.com",
		`{"allowOut":["x.com"]}`:               denyAllMissing,
		`{"allowOut":[1]}`:                     "allowOut[0] must be a string, got 1",
		`{"denyOut":["1.1.1.1"],"denyOut":[]}`: "duplicate key: denyOut",
		`{"allow_internet_access":false,"allowInternetAccess":true}`:    "allow_internet_access is false but allowInternetAccess is true",
		`{"rules":{"x.com":[{},{}]}}`:                                   `Domain "x.com" can have at most 1 transform rule.`,
		`{"egressProxy":{"address":"127.0.0.1:1"}}`:                     "Invalid egress proxy config: 127.0.0.1 is never reachable",
		`{"network":{"denyOut":["0.0.0.0/0"]}}`:                         "network is not a setting here",
		`{"allow_internet_access":"false"}`:                             `allow_internet_access must be true or false, got "false"`,
		`{"denyOut":["0.0.0.0/0"],"allowInternetacces":false,"x":null}`: "allowInternetacces is not a setting here",
	} {
		r.send(keyA, "PUT", path, body).want(http.StatusBadRequest, text)
	}
	r.send(keyA, "PUT", "/sandboxes/iunknown/network", `{}`).want(http.StatusNotFound)
	r.send(keyB, "PUT", path, `{}`).want(http.StatusNotFound)
	r.send(keyA, "PUT", "/sandboxes/I!/network", `{}`).want(http.StatusBadRequest, "Invalid sandbox ID")
	if after := r.record(id); !reflect.DeepEqual(before, after) {
		t.Errorf("a refused update changed the record: %+v", after)
	}

	r.engine.fails = errors.New("kernel said no")
	failed := r.send(keyA, "PUT", path, `{}`).want(http.StatusInternalServerError)
	if failed.header.Get(api.HeaderNetworkGeneration) != "" {
		t.Error("a failed update has a receipt")
	}
	r.engine.fails = nil

	r.change(id, func(s *store.Sandbox) { s.State = sandbox.Stopping })
	r.send(keyA, "PUT", path, `{}`).want(http.StatusConflict, "is being killed")
}
