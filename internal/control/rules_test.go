package control

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// goodNetworks are settings that are accepted.
var goodNetworks = []string{
	`{"rules":{"api.example.com":[{"transform":{"headers":{"X-Header":"Content"}}}]},"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"]}`,
	`{"rules":{"API.example.com":[{"transform":{"headers":{"Authorization":"Bearer hunter2","b":""},"stripCredentials":true}}],"*.example.org":[{"transform":{"strict":true}}]}}`,
	`{"rules":{"a.example.com":[],"b.example.com":[{}],"c.example.com":[{"transform":null}],"d.example.com":[{"transform":{"headers":null}}]}}`,
	`{"rules":[{"name":"r","match":{"host":"api.example.com","method":["GET"],"path":"/v1/*","scheme":"https","port":443},"action":{"allow":true,"audit":"full","inject":[{"header":"Authorization","secret":"hunter2","format":"Bearer ${SECRET} ${SECRET}"}],"stripCredentials":true}}]}`,
	`{"rules":[{"name":"r","match":{},"action":{"allow":false}}]}`,
	`{"rules":[]}`, `{"rules":{}}`, `{"rules":null}`,
	`{"egressProxy":{"address":"proxy.example.com:1080","username":"u","password":"hunter2"},"dns":"strict"}`,
	`{"egressProxy":null,"dns":"synthetic"}`,
}

// badNetworks are refused, and of hunter2 the refusal says nothing.
var badNetworks = []struct{ network, text string }{
	{`{"rules":"hunter2"}`, "network.rules must be an object or a list, got a string"},
	{`{"rules":{"x.com":{"transform":"hunter2"}}}`, "network.rules.x.com must be a list, got a value of another type"},
	{`{"rules":{"x.com":[{"transform":{"headers":["hunter2"]}}]}}`, "network.rules.x.com[0].transform.headers must be an object"},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":["hunter2"]}}}]}}`, "network.rules.x.com[0].transform.headers.A must be a string, got a value of another type"},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":null}}}]}}`, "network.rules.x.com[0].transform.headers.A must be a string"},
	{`{"rules":{"x.com":[{"transform":{"header":{"A":"hunter2"}}}]}}`, "network.rules.x.com[0].transform.header is not a setting"},
	{`{"rules":{"x.com":[{"headers":{"A":"hunter2"}}]}}`, "network.rules.x.com[0].headers is not a setting"},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":"hunter2","A":"b"}}}]}}`, "duplicate key: network.rules.x.com[0].transform.headers.A"},
	{`{"rules":{"x.com":[{},{}]}}`, `Domain "x.com" can have at most 1 transform rule.`},
	{`{"rules":{"x.com:443":[]}}`, `Rule domain "x.com:443" is not a valid domain name.`},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":"hunter2\r\nB: c"}}}]}}`, `Domain "x.com": the value of header A has a character that no header may have.`},
	{`{"rules":{"x.com":[{"transform":{"headers":{"Host":"hunter2"}}}]}}`, "header Host cannot be set"},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":"hunter2 ${e2b.secrets."}}}]}}`, "Network transform header contains a malformed E2B placeholder."},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":"hunter2 ${e2b.identity.tokens.t}"}}}]}}`, "this server issues none"},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":"hunter2 ${e2b.secrets.gone}"}}}]}}`, `Secret "gone" does not exist`},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":"Bearer [redacted]"}}}]}}`, "header A is [redacted], which stands for one that is not shown"},
	{`{"rules":{"x.com":[{"transform":{"headers":{"A":"` + strings.Repeat("hunter2", 300) + `"}}}]}}`, "header A exceeds maximum length of 2048 characters"},
	{`{"rules":[{"name":"r"}]}`, "network.rules[0].action.allow is required"},
	{`{"rules":[{"name":"r","action":{"allow":null}}]}`, "network.rules[0].action.allow is required"},
	{`{"rules":[{"name":"r","action":{"allow":true},"match":{"hosts":"x.com"}}]}`, "network.rules[0].match.hosts is not a setting"},
	{`{"rules":[{"name":"r","action":{"allow":true},"match":{"host":"10.0.0.0/8"}}]}`, "rules[0].match.host: 10.0.0.0/8 is neither a domain name nor *.name"},
	{`{"rules":[{"name":"r","action":{"allow":true,"inject":[{"header":"A","secret":5}]},"match":{"host":"x.com"}}]}`, "network.rules[0].action.inject[0].secret must be a string"},
	{`{"rules":[{"name":"r","action":{"allow":true,"inject":[{"header":"A","secret":"hunter2","format":"Bearer"}]},"match":{"host":"x.com"}}]}`, "network.rules[0].action.inject[0].format has no ${SECRET} in it"},
	{`{"egressProxy":"hunter2"}`, "network.egressProxy must be an object"},
	{`{"egressProxy":{"password":"hunter2"}}`, "Invalid egress proxy config: address is required"},
	{`{"egressProxy":{"address":"proxy.example.com:1080","password":"hunter2"}}`, "Invalid egress proxy config: there is a password but no username"},
	{`{"egressProxy":{"address":"proxy.example.com:1080","pass":"hunter2"}}`, "network.egressProxy.pass is not a setting"},
	{`{"egressProxy":{"address":"169.254.169.254:80"}}`, "Invalid egress proxy config: 169.254.169.254 is never reachable"},
	{`{"dns":"off"}`, `network.dns must be "synthetic" or "strict", got "off"`},
	{`{"allowOut":["x.com"],"rules":{"y.com":[]}}`, denyAllMissing},
}

func TestNetworkRulesRefusals(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"denyOut":["8.8.8.8"]}`).SandboxID
	for _, test := range badNetworks {
		created := r.send(keyA, "POST", "/v2/sandboxes", `{"templateID":"base","network":`+test.network+`}`).want(http.StatusBadRequest, test.text)
		updated := r.send(keyA, "PUT", "/sandboxes/"+id+"/network", test.network).want(http.StatusBadRequest, strings.ReplaceAll(test.text, "network.", ""))
		if strings.Contains(created.body+updated.body, "hunter2") {
			t.Errorf("a refusal repeats a secret: %s %s", created.body, updated.body)
		}
	}
	for body, text := range map[string]string{
		`{"templateID":"base","network":[{"rules":["hunter2"]}]}`:               "network must be an object, got a list",
		`{"templateID":"base","network":{"allowOut":{"rules":["hunter2"]}}}`:    "network.allowOut must be a list, got an object",
		`{"templateID":"base","network":{"allowOut":[{"password":"hunter2"}]}}`: "network.allowOut[0] must be a string, got an object",
	} {
		if refusal := r.send(keyA, "POST", "/v2/sandboxes", body).want(http.StatusBadRequest, text); strings.Contains(refusal.body, "hunter2") {
			t.Errorf("a refusal repeats a secret: %s", refusal.body)
		}
	}
	r.send(keyA, "POST", "/v2/sandboxes", `{"templateID":"base","rules":{}}`).want(http.StatusBadRequest, "rules has no effect here: it belongs inside network")
	if strings.Contains(r.log.String(), "hunter2") {
		t.Error("the log repeats a secret")
	}
}

func TestNetworkRules(t *testing.T) {
	r := newRig(t)
	for _, network := range goodNetworks {
		made := decodeAs[api.Sandbox](r.send(keyA, "POST", "/v2/sandboxes", `{"templateID":"base","network":`+network+`}`).want(http.StatusCreated))
		shown := r.send(keyA, "GET", "/sandboxes/"+made.SandboxID, "").want(http.StatusOK)
		explained := r.send(keyA, "POST", "/sandboxes/"+made.SandboxID+"/network/explain", `{"address":"1.1.1.1","port":443}`).want(http.StatusOK)
		if strings.Contains(shown.body+explained.body, "hunter2") {
			t.Errorf("%s: shown as %s", network, shown.body)
		}
		r.send(keyA, "PUT", "/sandboxes/"+made.SandboxID+"/network", network).want(http.StatusNoContent)
	}
	if strings.Contains(r.log.String(), "hunter2") {
		t.Error("the log repeats a secret")
	}
}

// TestNetworkRulesMean: what was said reaches the engine, and comes back without
// values.
func TestNetworkRulesMean(t *testing.T) {
	r := newRig(t)
	start := func(network string) (policy.Document, *api.Network) {
		t.Helper()
		id := r.create(keyA, `"network":`+network).SandboxID
		detail := decodeAs[api.SandboxDetail](r.send(keyA, "GET", "/sandboxes/"+id, "").want(http.StatusOK))
		return r.engine.specs[len(r.engine.specs)-1].Network, detail.Network
	}
	got, shown := start(goodNetworks[1])
	want := policy.Rules{Hosts: []policy.HostRule{
		{Host: "*.example.org", Strict: true},
		{Host: "API.example.com", StripCredentials: true, Headers: []policy.Header{
			{Name: "Authorization", Value: secret.New("Bearer hunter2")}, {Name: "b", Value: secret.New("")},
		}},
	}}
	if !reflect.DeepEqual(got.Rules, want) {
		t.Errorf("%s became %+v", goodNetworks[1], got.Rules)
	}
	if header := shown.Rules.Hosts["API.example.com"][0].Transform; header.Headers["Authorization"] != api.Redacted || !header.StripCredentials {
		t.Errorf("%s is shown as %+v", goodNetworks[1], shown.Rules)
	}

	got, shown = start(goodNetworks[3])
	want = policy.Rules{Ordered: []policy.OrderedRule{{
		Name: "r", Allow: true, Audit: "full", StripCredentials: true,
		Match:  policy.Match{Host: "api.example.com", Methods: []string{"GET"}, Path: "/v1/*", Scheme: "https", Port: 443},
		Inject: []policy.Header{{Name: "Authorization", Value: secret.New("Bearer hunter2 ${SECRET}")}},
	}}}
	if !reflect.DeepEqual(got.Rules, want) {
		t.Errorf("%s became %+v", goodNetworks[3], got.Rules)
	}
	if rule := shown.Rules.Ordered[0]; rule.Match.Host != "api.example.com" || rule.Action.Inject[0] != (api.Inject{Header: "Authorization", Secret: api.Redacted}) {
		t.Errorf("%s is shown as %+v", goodNetworks[3], shown.Rules)
	}

	got, shown = start(goodNetworks[8])
	if got.EgressProxy.Password.Reveal() != "hunter2" || !got.StrictDNS {
		t.Errorf("%s became %+v", goodNetworks[8], got)
	}
	if *shown.EgressProxy != (api.EgressProxy{Address: "proxy.example.com:1080", Username: "u"}) || shown.DNS != api.DNSStrict {
		t.Errorf("%s is shown as %+v", goodNetworks[8], shown)
	}
}
