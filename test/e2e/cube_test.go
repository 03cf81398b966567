package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// TestCubeSandbox does what CubeSandbox's page about private sandboxes shows, as
// its client does it: without a key, in the first dialect, over plain HTTP.
func TestCubeSandbox(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{"--allow-anonymous", "cube", "--allow-anonymous-anywhere"}})
	ask := func(method, path, body string, status int) harness.Answer {
		t.Helper()
		a := s.RequestAs(t, "", method, path, strings.NewReader(body))
		if a.Status != status {
			t.Fatalf("%s %s %s: %d %s, want %d", method, path, body, a.Status, a.Body, status)
		}
		return a
	}
	var made api.Sandbox
	created := ask("POST", "/sandboxes", `{"templateID":"base","network":{"allowPublicTraffic":false}}`, 201)
	if err := json.Unmarshal([]byte(created.Body), &made); err != nil {
		t.Fatal(err)
	}
	if made.TrafficAccessToken == nil || len(*made.TrafficAccessToken) != 64 || made.Domain == nil || *made.Domain != lab.Domain {
		t.Fatalf("made %s", created.Body)
	}
	token, path := *made.TrafficAccessToken, "/sandboxes/"+made.SandboxID
	box := &harness.Box{Sandbox: s.ClientOf("").Open(made), Made: made}
	box.Start(t, "sudo python3 -m http.server 80")
	url := publicURL(box, "http", 80, "/")
	for _, c := range []struct {
		header map[string]string
		status int
	}{
		{nil, 403},
		{map[string]string{"e2b-traffic-access-token": token}, 200},
		{map[string]string{"cube-traffic-access-token": token}, 200},
		{map[string]string{"e2b-traffic-access-token": "wrong", "cube-traffic-access-token": token}, 403},
	} {
		status, body := visit(t, s, url, c.header)
		if status != c.status {
			t.Errorf("%v: %d %s, want %d", c.header, status, body, c.status)
		}
		if status == 403 && !strings.Contains(body, `"error":"forbidden"`) {
			t.Errorf("refused with %s", body)
		}
	}

	// Single delivery: no other call of Cube's clients tells the token.
	for _, c := range []struct{ method, path, body string }{
		{"POST", path + "/connect", `{}`}, {"GET", path, ""}, {"GET", "/sandboxes", ""}, {"GET", "/v2/sandboxes", ""},
	} {
		if a := ask(c.method, c.path, c.body, 200); strings.Contains(a.Body, token) {
			t.Errorf("%s %s tells the token", c.method, c.path)
		}
	}
	// Updates, in their spelling.
	ask("PUT", path+"/network", `{"allowOut":["1.1.1.1"],"allowInternetAccess":false}`, 204)
	expect(t, s, withUpload(t, box), []string{"1.1.1.1"}, []string{"8.8.8.8"})
	ask("PUT", path+"/network", `{"rules":[{"name":"r","match":{"host":"x.test"},"action":{"allow":"yes"}}]}`, 400)
	ask("PUT", path+"/network", `{"allowPublicTraffic":true}`, 400)
	ask("POST", path+"/timeout", `{"timeout":-1}`, 400)
	ask("DELETE", path, ``, 204)
	if status, _ := visit(t, s, url, map[string]string{"cube-traffic-access-token": token}); status != 502 {
		t.Errorf("after the kill: %d", status)
	}
}

// TestPrivateAgent is what CubeSandbox's page ends with: one sandbox whose way
// out is nearly closed, whose requests get a key that it never sees, and whose
// URL wants a token.
func TestPrivateAgent(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	made := s.Request(t, "POST", "/sandboxes", `{"templateID":"base","allow_internet_access":false,"network":{"allowPublicTraffic":false,"rules":[
		{"name":"model","match":{"host":"api.example.com","scheme":"https","method":["POST"],"path":"/echo*"},
			"action":{"allow":true,"inject":[{"header":"Authorization","secret":"`+literalValue+`","format":"Bearer ${SECRET}"}]}}]}}`)
	var agent api.Sandbox
	if err := json.Unmarshal([]byte(made.Body), &agent); err != nil || agent.TrafficAccessToken == nil {
		t.Fatalf("%+v, %v", made, err)
	}
	box := &harness.Box{Sandbox: s.Client().Open(agent), Made: agent}
	box.Start(t, "sudo python3 -m http.server 80")
	ask := func(line string) string {
		return strings.TrimSpace(box.Run(t, "curl -sS -m 10 -w ' %{http_code}' "+line).Stdout)
	}
	if got := ask("-d prompt https://api.example.com/echo"); got != "prompt 200" {
		t.Errorf("the request that is allowed: %q", got)
	}
	for _, line := range []string{"https://api.example.com/echo", "-d prompt https://api.example.com/", "-d prompt http://api.example.com/echo", "https://google.com/", "-k https://45.60.70.80/"} {
		if got := ask(line); !strings.HasSuffix(got, "403") && !strings.HasSuffix(got, "000") {
			t.Errorf("%s: %q", line, got)
		}
	}
	requests := s.Lab.Requests()
	if len(requests) != 1 || requests[0].Header.Get("Authorization") != "Bearer "+literalValue {
		t.Errorf("arrived: %+v", requests)
	}
	url := publicURL(box, "https", 80, "/")
	for want, header := range map[int]map[string]string{403: nil, 200: {"cube-traffic-access-token": *agent.TrafficAccessToken}} {
		if status, body := visit(t, s, url, header); status != want {
			t.Errorf("%v: %d %s, want %d", header, status, body, want)
		}
	}
}

func withUpload(t *testing.T, box *harness.Box) *harness.Box {
	t.Helper()
	box.Upload(t, proberFile, prober)
	return box
}

// TestAnonymousIsNotForPages: a web page that a browser on this machine shows
// must not get what a program gets without a key; and by default nobody does.
func TestAnonymousIsNotForPages(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{"--allow-anonymous", "cube", "--allow-anonymous-anywhere"}})
	for what, header := range map[string]http.Header{
		"a page's request":     {"Origin": {"http://evil.test"}},
		"a page's own domain":  {"Host": {"evil.test"}},
		"a key that is wrong":  {"X-Api-Key": {"e2b_00"}},
		"a key that is no key": {"Authorization": {"Bearer x"}},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", harness.URL+"/sandboxes", strings.NewReader(`{"templateID":"base"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		req.Host = header.Get("Host")
		resp, err := s.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Errorf("%s: %d, want 401", what, resp.StatusCode)
		}
	}
	s.Stop()
	status, out := s.Second("--http", "0.0.0.0:80", "--allow-anonymous", "cube", "--allow-anonymous-anywhere=false")
	if status != 2 || !strings.Contains(out, "--allow-anonymous cube: whoever reaches --http 0.0.0.0:80") {
		t.Errorf("exit status %d:\n%s", status, out)
	}
}
