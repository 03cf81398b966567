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
