package control

import (
	"net/http"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
)

// TestAnonymous: who is let in without a key, where the operator allows it.
func TestAnonymous(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Anonymous, c.Domain = "team-a", "moat.test:8443" })
	mine := r.create(keyA, "").SandboxID
	r.create(keyB, "")
	for name, test := range map[string]struct {
		host   string
		header http.Header
		status int
	}{
		"nothing":                  {"", nil, 200},
		"right key":                {"", http.Header{"X-Api-Key": {keyA}}, 200},
		"wrong key":                {"", http.Header{"X-Api-Key": {"e2b_00"}}, 401},
		"empty key":                {"", http.Header{"X-Api-Key": {""}}, 401},
		"other authorization":      {"", http.Header{"Authorization": {"Basic eDp5"}}, 401},
		"from a web page":          {"", http.Header{"Origin": {"http://evil.test"}}, 401},
		"from a sandboxed page":    {"", http.Header{"Origin": {"null"}}, 401},
		"from an empty origin":     {"", http.Header{"Origin": {""}}, 401},
		"from a sandbox's page":    {"", http.Header{"Sec-Fetch-Site": {"same-origin"}}, 401},
		"node's fetch":             {"", http.Header{"Sec-Fetch-Mode": {"cors"}}, 200},
		"page with a key":          {"", http.Header{"Origin": {"http://app.test"}, "X-Api-Key": {keyA}}, 200},
		"localhost":                {"localhost:6628", nil, 200},
		"below localhost":          {"api.LOCALHOST", nil, 200},
		"IPv6 address":             {"[::1]:80", nil, 200},
		"our domain":               {"moat.test", nil, 200},
		"below our domain":         {"api.moat.test:8443", nil, 200},
		"a page's own domain":      {"evil.test", nil, 401},
		"a domain that looks like": {"notmoat.test", nil, 401},
		"an address as label":      {"127.0.0.1.evil.test", nil, 401},
		"localhost as label":       {"localhost.evil.test", nil, 401},
		"another domain and a key": {"evil.test", http.Header{"X-Api-Key": {keyA}}, 200},
	} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", r.public.URL+"/sandboxes", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header, request.Host = test.header, test.host
		if request.Header == nil {
			request.Header = http.Header{}
		}
		got := r.do(request)
		if got.status != test.status {
			t.Errorf("%s: %d %s, want %d", name, got.status, got.body, test.status)
		}
		if got.status == 200 {
			if list := decodeAs[[]api.ListedSandbox](got); len(list) != 1 || list[0].SandboxID != mine {
				t.Errorf("%s: acts for another team: %s", name, got.body)
			}
		}
	}
	// The operator stays who he is.
	if got := r.sendTo(r.operator, "", "GET", "/sandboxes", "").want(http.StatusOK); got.body != "[]" {
		t.Errorf("the operator acts for the anonymous team: %s", got.body)
	}
}

func TestAnonymousNeedsATeam(t *testing.T) {
	for _, team := range []string{"a b", "-a", "a/b", strings.Repeat("a", 64), "é"} {
		_, err := New(Config{
			Store: openNothing{}, Engine: &engine{}, Templates: &templates{}, Secrets: noSecrets{}, Flows: newRig(t).flows, Lifetime: t.Context(), Anonymous: team,
			Compile: newRig(t).api.Compile, MaxTimeout: 1 << 40, Scheme: "http", Logger: newRig(t).api.Logger,
		})
		if err == nil || !strings.Contains(err.Error(), "cannot be a team's name") {
			t.Errorf("%q: %v", team, err)
		}
	}
}

// TestCubeSandbox follows seed 001 over the wire: what its clients send, in
// their order, without a key.
func TestCubeSandbox(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Anonymous, c.Domain = "cube", "cube.test" })
	made := decodeAs[api.Sandbox](r.send("", "POST", "/sandboxes", `{"templateID":"base",`+private+`}`).want(http.StatusCreated))
	if made.TrafficAccessToken == nil || made.EnvdAccessToken == "" || made.Domain == nil || *made.Domain != "cube.test" {
		t.Fatalf("made %+v", made)
	}
	path := "/sandboxes/" + made.SandboxID
	for _, step := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/health", "", 200},
		{"GET", path, "", 200},
		{"GET", "/sandboxes", "", 200},
		{"GET", "/v2/sandboxes", "", 200},
		{"POST", path + "/connect", `{}`, 200},
		{"POST", path + "/refreshes", `{}`, 204},
		{"POST", path + "/timeout", `{"timeout":600}`, 204},
		{"POST", path + "/timeout", `{"timeout":-1}`, 400},
		{"PUT", path + "/network", `{}`, 204},
		{"PUT", path + "/network", `{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"],"allowInternetAccess":false,"allowPublicTraffic":false,"rules":[]}`, 204},
		{"PUT", path + "/network", `{"rules":[{"name":"r","match":{"host":"x.test"},"action":{"allow":true}}]}`, 204},
		{"POST", path + "/pause", `{}`, 501},
		{"POST", path + "/resume", `{}`, 501},
		{"POST", path + "/snapshots", `{}`, 501},
		{"POST", path + "/rollback", `{"snapshotID":"s"}`, 501},
		{"POST", path + "/fork", `{"count":1}`, 501},
		{"GET", "/snapshots?sandboxID=" + made.SandboxID, "", 501},
		{"DELETE", path, "", 204},
		{"DELETE", path, "", 404},
		{"POST", "/sandboxes", `{"templateID":"base","timeout":-1}`, 400},
		{"POST", "/sandboxes", `{"templateID":"base","timeout":0}`, 400},
		{"POST", "/sandboxes", `{"templateID":"base","network":{"rules":[{"name":"r"}]}}`, 400},
	} {
		r.send("", step.method, step.path, step.body).want(step.status)
	}
}
