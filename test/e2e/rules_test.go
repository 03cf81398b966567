package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// Values that must not be anywhere but in requests to the hosts that they are
// for.
const (
	literalValue = "literal-7d1f0c55"
	secretValue  = "secret-3b9a62e1"
	rotatedValue = "rotated-c4e8d0a7"
)

// arrived returns the requests for a host that reached the internet since there
// were so many.
func arrived(s *harness.Server, since int, host string) []lab.Request {
	return slices.DeleteFunc(s.Lab.Requests()[since:], func(r lab.Request) bool { return r.Host != host })
}

// hosts is a document with E2B's rules.
func hosts(allow, deny []string, rules map[string]api.Transform) api.NewSandbox {
	given := make(map[string][]api.HostRule, len(rules))
	for host, transform := range rules {
		given[host] = []api.HostRule{{Transform: transform}}
	}
	n := network(allow, deny)
	n.Rules = &api.Rules{Hosts: given}
	return api.NewSandbox{Network: n}
}

// programs make requests as agents' code does: each prints what it got.
var programs = map[string]string{
	"curl over HTTP/1.1": "curl -sS --http1.1 -H 'authorization: own' -H 'Authorization: own2' $URL",
	"curl":               "curl -sS -H 'authorization: own' $URL",
	"Python's urllib":    `python3 -c "import urllib.request as u; print(u.urlopen(u.Request('$URL', headers={'Authorization': 'own'})).read().decode())"`,
	"Node's fetch":       `node -e "fetch('$URL', {headers: {authorization: 'own'}}).then(r => r.text()).then(console.log)"`,
	"curl after sudo":    "sudo -u user curl -sS $URL",
	"git":                "git -c http.extraHeader='Authorization: own' ls-remote ${URL}x.git 2>&1; curl -sS $URL",
}

// TestHeadersAreSet asks by programs of all kinds. What rules say comes out at
// the host they are for, once, and nowhere else.
func TestHeadersAreSet(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{"--log-level", "debug"}})
	c := s.Client()
	if _, err := c.SetSecret(t.Context(), "openai", secretValue); err != nil {
		t.Fatal(err)
	}
	box := s.Create(t, hosts([]string{"api.example.com", "*.github.com", "google.com"}, everything, map[string]api.Transform{
		"api.example.com": {Headers: map[string]string{"authorization": "Bearer ${e2b.secrets.openai}", "X-Literal": literalValue}},
		"*.github.com":    {Headers: map[string]string{"X-Wide": "1"}},
	}))
	for name, line := range programs {
		for _, scheme := range []string{"https", "http"} {
			since := len(s.Lab.Requests())
			out := box.Run(t, "URL="+scheme+"://api.example.com/; "+line)
			if !strings.Contains(out.Stdout, "this is api.example.com at") {
				t.Errorf("%s over %s: %+v", name, scheme, out)
			}
			got := arrived(s, since, "api.example.com")
			if len(got) == 0 {
				t.Errorf("%s over %s: nothing arrived", name, scheme)
			}
			for _, r := range got {
				if values := r.Header["Authorization"]; len(values) != 1 || values[0] != "Bearer "+secretValue || r.Header.Get("X-Literal") != literalValue || r.TLS != (scheme == "https") {
					t.Errorf("%s over %s: %v arrived, TLS %t", name, scheme, r.Header, r.TLS)
				}
			}
		}
	}

	// Elsewhere nothing is set, whatever the request claims.
	since := len(s.Lab.Requests())
	visits{
		"https://google.com/":     "this is google.com",
		"http://google.com/":      "this is google.com",
		"https://api.github.com/": "this is api.github.com",
		"https://evil.example/":   alert,
	}.check(t, box)
	box.Run(t, "curl -sS -m 5 -k -H 'Host: api.example.com' https://google.com/")
	box.Run(t, "curl -sS -m 5 --resolve api.example.com:443:45.60.70.80 https://api.example.com/")
	box.Run(t, "curl -sS -m 5 --resolve api.example.com:80:45.60.70.80 http://api.example.com/")
	for _, r := range s.Lab.Requests()[since:] {
		leaks := r.Header.Get("X-Literal") != "" || r.Header.Get("Authorization") != ""
		if leaks && (r.Host != "api.example.com" || r.To.Addr().String() == "45.60.70.80" || r.TLS && r.ServerName != "api.example.com") {
			t.Errorf("a credential went to %s, as %s, at %v", r.ServerName, r.Host, r.To)
		}
		if r.Host == "api.github.com" && r.Header.Get("X-Wide") != "1" {
			t.Errorf("the wildcard's header is missing: %v", r.Header)
		}
	}

	rotate(t, s, box)
	expectHidden(t, s, box)
}

// rotate replaces the secret of a running sandbox, and takes it away.
func rotate(t *testing.T, s *harness.Server, box *harness.Box) {
	t.Helper()
	c := s.Client()
	if _, err := c.SetSecret(t.Context(), "openai", rotatedValue); err != nil {
		t.Fatal(err)
	}
	since := len(s.Lab.Requests())
	box.MustRun(t, "curl -sSf https://api.example.com/")
	if got := arrived(s, since, "api.example.com"); len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer "+rotatedValue {
		t.Errorf("after the secret was replaced: %+v", got)
	}
	// Another server knows it all again, and who is in force.
	s.Stop()
	s.Start()
	since = len(s.Lab.Requests())
	box.MustRun(t, "curl -sSf https://api.example.com/")
	if got := arrived(s, since, "api.example.com"); len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer "+rotatedValue || got[0].Header.Get("X-Literal") != literalValue {
		t.Errorf("after a restart: %+v", got)
	}
	if err := c.DeleteSecret(t.Context(), "openai"); err != nil {
		t.Fatal(err)
	}
	since = len(s.Lab.Requests())
	for _, scheme := range []string{"http", "https"} {
		out := box.Run(t, "curl -sS -m 5 "+scheme+"://api.example.com/")
		if !strings.Contains(out.Stdout, "openai") {
			t.Errorf("without the secret, over %s: %+v", scheme, out)
		}
	}
	if got := arrived(s, since, "api.example.com"); len(got) != 0 {
		t.Errorf("without the secret %d requests were sent", len(got))
	}
}

// Attack 42: reading injected values back. expectHidden looks for the values
// everywhere that somebody could read: in the sandbox, in answers of the API, in
// records, logs and the server's files.
func expectHidden(t *testing.T, s *harness.Server, box *harness.Box) {
	t.Helper()
	seen := map[string]string{
		"the sandbox":  box.MustRun(t, "env; cat /proc/1/environ; cat /etc/environment"),
		"the log":      s.Output(),
		"GET sandbox":  s.Request(t, "GET", "/sandboxes/"+box.ID, "").Body,
		"GET network":  s.Request(t, "GET", "/sandboxes/"+box.ID+"/network", "").Body,
		"GET metrics":  s.Request(t, "GET", "/sandboxes/"+box.ID+"/metrics", "").Body + s.Request(t, "GET", "/metrics", "").Body,
		"GET secrets":  s.Request(t, "GET", "/secrets", "").Body,
		"GET flows":    s.Request(t, "GET", "/sandboxes/"+box.ID+"/network/flows?limit=1000", "").Body,
		"the list":     s.Request(t, "GET", "/v2/sandboxes", "").Body,
		"explanations": s.Request(t, "POST", "/sandboxes/"+box.ID+"/network/explain", `{"address":"93.184.216.34","port":443}`).Body,
	}
	if !strings.Contains(seen["GET sandbox"], `"X-Literal":"[redacted]"`) {
		t.Errorf("GET sandbox shows no names of headers: %s", seen["GET sandbox"])
	}
	if !strings.Contains(seen["GET network"], `"X-Literal":"[redacted]"`) {
		t.Errorf("GET network shows no names of headers: %s", seen["GET network"])
	}
	if !strings.Contains(seen["the log"], "level=DEBUG") {
		t.Error("the log is not the most detailed one")
	}
	if !strings.Contains(seen["GET flows"], "api.example.com") {
		t.Errorf("there are no records: %s", seen["GET flows"])
	}
	err := filepath.WalkDir(s.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err == nil {
			seen[path] = string(raw)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for where, text := range seen {
		for _, value := range []string{literalValue, secretValue, rotatedValue} {
			if bytes.Contains([]byte(text), []byte(value)) {
				t.Errorf("%s is in %s", value, where)
			}
		}
	}
}

// TestRulesOfSeeds: E2B's page allows the hosts that have rules, with and
// without a denial of all else, and CubeSandbox's clients send a list.
func TestRulesOfSeeds(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	trace := map[string]api.Transform{"api.example.com": {Headers: map[string]string{"X-Trace": "on"}}}
	closed := s.Create(t, hosts([]string{"api.example.com"}, everything, trace))
	open := s.Create(t, hosts([]string{"api.example.com"}, nil, trace))
	granting := s.Create(t, hosts(nil, everything, trace))
	since := len(s.Lab.Requests())
	visits{"https://api.example.com/": "this is api.example.com", "https://google.com/": alert}.check(t, closed)
	visits{"https://api.example.com/": "this is api.example.com", "https://google.com/": "this is google.com"}.check(t, open)
	visits{"https://api.example.com/": "no entry of allowOut names api.example.com"}.check(t, granting)
	for _, r := range s.Lab.Requests()[since:] {
		if (r.Host == "api.example.com") != (r.Header.Get("X-Trace") == "on") {
			t.Errorf("%s has X-Trace %q", r.Host, r.Header.Get("X-Trace"))
		}
	}
}

// TestOrderedRules: the first rule that matches decides, what rules allow is
// reachable, and what none matches is answered with 403.
func TestOrderedRules(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	off := false
	box := s.Create(t, api.NewSandbox{AllowInternetAccess: &off, Network: &api.Network{Rules: &api.Rules{Ordered: []api.OrderedRule{
		{Name: "no secrets", Match: api.Match{Host: "api.example.com", Path: "/status/*"}, Action: api.Action{}},
		{Name: "reads", Match: api.Match{Host: "api.example.com", Method: []string{"GET", "HEAD"}}, Action: api.Action{
			Allow: true, StripCredentials: true, Inject: []api.Inject{{Header: "Authorization", Secret: literalValue, Format: "Bearer ${SECRET}"}},
		}},
		{Name: "ads", Match: api.Match{Host: "*.github.com"}, Action: api.Action{}},
	}}}})
	visits{
		"https://api.example.com/":           "this is api.example.com",
		"http://api.example.com/":            "this is api.example.com",
		"https://api.example.com/status/204": "rule no secrets denies the request",
		"https://api.example.com/%73tatus/1": "rule no secrets denies the request",
		"https://api.github.com/":            "rule ads denies the request",
		"https://google.com/":                alert,
	}.check(t, box)
	if got := box.Run(t, "curl -sS -X POST -w '%{http_code}' https://api.example.com/"); !strings.Contains(got.Stdout, "no rule for api.example.com matches the request") || !strings.HasSuffix(got.Stdout, "403") {
		t.Errorf("an unmatched request: %+v", got)
	}
	since := len(s.Lab.Requests())
	box.MustRun(t, "curl -sSf -H 'Cookie: own' -H 'X-Api-Key: own' -H 'X-Other: kept' 'https://api.example.com/headers?api_key=own&q=1'")
	got := arrived(s, since, "api.example.com")
	if len(got) != 1 {
		t.Fatalf("%d requests", len(got))
	}
	h := got[0].Header
	if h.Get("Authorization") != "Bearer "+literalValue || h.Get("Cookie") != "" || h.Get("X-Api-Key") != "" || h.Get("X-Other") != "kept" || got[0].Path != "/headers?q=1" {
		t.Errorf("arrived: %s %v", got[0].Path, h)
	}
}

// TestSandboxTrusts: programs find the authority where they look for such, also
// in sessions that are not the daemon's. Those that connect are in
// TestHeadersAreSet.
func TestSandboxTrusts(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{})
	names := []string{
		"NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT",
	}
	for _, line := range []string{"env", "sudo env", "sudo su - user -c env"} {
		out := box.MustRun(t, line)
		for _, name := range names {
			if !strings.Contains(out, name+"=/etc/") {
				t.Errorf("%s: %s is missing from %s", line, name, out)
			}
		}
	}
	if got := box.Run(t, "keytool -list -cacerts -storepass changeit -alias moat-extra-ca-1"); !strings.Contains(got.Stdout, "trustedCertEntry") {
		t.Errorf("Java: %+v", got)
	}
}

// TestUnknownSecret: a sandbox that could not do what it is for is not made.
func TestUnknownSecret(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	spec := hosts(nil, nil, map[string]api.Transform{"api.example.com": {Headers: map[string]string{"A": "${e2b.secrets.gone}"}}})
	spec.TemplateID = "base"
	_, err := s.Client().CreateSandbox(t.Context(), spec)
	if harness.Status(err) != http.StatusBadRequest || !strings.Contains(fmt.Sprint(err), `Secret "gone" does not exist`) {
		t.Errorf("create: %v", err)
	}
}
