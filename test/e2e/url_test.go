package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// publicURL is the public address of a port of a sandbox.
func publicURL(box *harness.Box, scheme string, port int, path string) string {
	return fmt.Sprintf("%s://%d-%s.%s%s", scheme, port, box.ID, lab.Domain, path)
}

// TestFirstRequestNeedsNoWait starts a server in the background and asks it at
// once, again and again: a refused dial must be tried again until it listens.
func TestFirstRequestNeedsNoWait(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	for i, scheme := range []string{"http", "https", "https"} {
		box := s.Create(t, api.NewSandbox{})
		port := 8000 + i
		box.Start(t, fmt.Sprintf("python -m http.server %d", port))
		a := s.RequestAs(t, "", "GET", publicURL(box, scheme, port, "/"), nil)
		if a.Status != 200 || !strings.Contains(a.Body, "Directory listing") {
			t.Errorf("%s: %d %s", scheme, a.Status, a.Body)
		}
	}
}

func TestPublicURLs(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, api.NewSandbox{})
	box.Start(t, prober+" serve 8080")
	ask := func(method, url string, header map[string]string, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range header {
			if name == "Host" {
				req.Host = value
			}
			req.Header.Set(name, value)
		}
		resp, err := s.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	byHeader := map[string]string{"E2b-Sandbox-Id": box.ID, "E2b-Sandbox-Port": "8080"}
	host := fmt.Sprintf("8080-%s.%s", box.ID, lab.Domain)
	for _, c := range []struct {
		what, url string
		header    map[string]string
		status    int
		words     []string
	}{
		{"by name", publicURL(box, "https", 8080, "/a%2Fb?q=1&q=2;3"), nil, 200, []string{"GET " + host + " /a%2Fb?q=1&q=2;3"}},
		{"by name, plain", publicURL(box, "http", 8080, "/x"), nil, 200, []string{"GET " + host + " /x"}},
		{"by header on an address", harness.URL + "/x", byHeader, 200, []string{"GET", " /x"}},
		{"by header on the shared host", "https://sandbox." + lab.Domain + "/x", byHeader, 200, []string{" /x"}},
		{"headers do not divert a sandbox's host", publicURL(box, "https", 8081, "/"), byHeader, 502, []string{"port is not open"}},
		{"the key is not forwarded", publicURL(box, "http", 8080, "/"), map[string]string{"X-Api-Key": s.Key}, 200, nil},
		{"closed port", publicURL(box, "https", 8081, "/"), nil, 502, []string{"port is not open", "8081"}},
		{"no such sandbox", "https://8080-i00000000000000000000." + lab.Domain + "/", nil, 502, []string{"The sandbox was not found"}},
		{"port 0", "https://0-" + box.ID + "." + lab.Domain + "/", nil, 400, nil},
		{"port 65536", "https://65536-" + box.ID + "." + lab.Domain + "/", nil, 400, nil},
		{"port 080", "https://080-" + box.ID + "." + lab.Domain + "/", nil, 400, nil},
		{"a port that is a word", "https://http-" + box.ID + "." + lab.Domain + "/", nil, 400, nil},
	} {
		status, body := ask("GET", c.url, c.header, "")
		if status != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.what, status, c.status, body)
		}
		for _, word := range c.words {
			if !strings.Contains(body, word) {
				t.Errorf("%s: %q is not in %s", c.what, word, body)
			}
		}
		if strings.Contains(body, s.Key) {
			t.Errorf("%s: the API key arrived at the sandbox: %s", c.what, body)
		}
	}
	if _, body := ask("POST", publicURL(box, "https", 8080, "/echo"), nil, "to and fro"); body != "to and fro" {
		t.Errorf("echo: %q", body)
	}
	browser := map[string]string{"User-Agent": "Mozilla/5.0 Firefox/140.0", "Accept": "text/html"}
	if _, body := ask("GET", publicURL(box, "https", 8081, "/"), browser, ""); !strings.HasPrefix(strings.ToLower(body), "<!doctype html") && !strings.HasPrefix(body, "<html") {
		t.Errorf("a browser is shown %.60q, want a page", body)
	}
}

// TestRestrictedURLs expects the ports of a sandbox without public traffic to
// want its token, by either name, and the token to go no further.
func TestRestrictedURLs(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	off, mask := false, "localhost:${PORT}"
	box := withProber(t, s, api.NewSandbox{Network: &api.Network{AllowPublicTraffic: &off, MaskRequestHost: &mask}})
	box.Start(t, prober+" serve 8080")
	if box.Made.TrafficAccessToken == nil || len(*box.Made.TrafficAccessToken) < 32 {
		t.Fatalf("create returned the token %v", box.Made.TrafficAccessToken)
	}
	token := *box.Made.TrafficAccessToken
	ask := func(header, value string) harness.Answer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", publicURL(box, "https", 8080, "/"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			req.Header.Set(header, value)
		}
		resp, err := s.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return harness.Answer{Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
	}
	check := func(when string) {
		t.Helper()
		for what, header := range map[string][2]string{
			"no token":            {},
			"an empty token":      {"e2b-traffic-access-token", ""},
			"a wrong token":       {"e2b-traffic-access-token", strings.Repeat("0", len(token))},
			"the key":             {"X-API-Key", s.Key},
			"the token elsewhere": {"Authorization", "Bearer " + token},
		} {
			if a := ask(header[0], header[1]); a.Status != 403 || strings.Contains(a.Body, token) {
				t.Errorf("%s, %s: %d %s, want 403", when, what, a.Status, a.Body)
			}
		}
		for _, header := range []string{"e2b-traffic-access-token", "cube-traffic-access-token"} {
			a := ask(header, token)
			if a.Status != 200 || !strings.HasPrefix(a.Body, "GET localhost:8080 /") {
				t.Errorf("%s, with %s: %d %s, want 200 and the masked host", when, header, a.Status, a.Body)
			}
			if strings.Contains(a.Body, token) {
				t.Errorf("%s: the token arrived at the sandbox: %s", when, a.Body)
			}
		}
	}
	check("after create")
	s.Kill()
	s.Start()
	check("after a restart")
	again, err := s.Client().Connect(t.Context(), box.ID, time.Minute)
	if err != nil || again.TrafficAccessToken == nil || *again.TrafficAccessToken != token {
		t.Errorf("connect returned the token %v, %v", again.TrafficAccessToken, err)
	}
	if a := s.Request(t, "GET", "/sandboxes/"+box.ID, ""); strings.Contains(a.Body, token) {
		t.Errorf("GET shows the token: %s", a.Body)
	}
	if strings.Contains(s.Output(), token) {
		t.Error("the token is in the server's log")
	}
}

func TestPublicURLStreams(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, api.NewSandbox{})
	box.Start(t, prober+" serve 8080")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	// An event must arrive before the server sends the next one: it waits for
	// our word in between.
	req, err := http.NewRequestWithContext(ctx, "GET", publicURL(box, "https", 8080, "/events"), nil)
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	if events.ProtoMajor != 2 {
		t.Errorf("over TLS we speak %s, want HTTP/2", events.Proto)
	}
	lines := bufio.NewScanner(events.Body)
	for _, want := range []string{"data: one", "", "data: two"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("event %q, want %q (%v)", lines.Text(), want, lines.Err())
		}
		if want == "" {
			s.RequestAs(t, "", "GET", publicURL(box, "https", 8080, "/next"), nil)
		}
	}

	conn, _, err := websocket.Dial(ctx, publicURL(box, "wss", 8080, "/ws"), &websocket.DialOptions{HTTPClient: s.HTTP()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	for _, message := range []string{"hello", strings.Repeat("long ", 5000)} {
		if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(ctx); err != nil || string(got) != message {
			t.Fatalf("WebSocket: %.20q, %v", got, err)
		}
	}

	// A body larger than any buffer, both ways at once.
	const size = 64 << 20
	sent, received := sha256.New(), sha256.New()
	body := io.TeeReader(io.LimitReader(repeat("0123456789abcdef-"), size), sent)
	req, err = http.NewRequestWithContext(ctx, "POST", publicURL(box, "http", 8080, "/echo"), body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(received, resp.Body)
	if err != nil || n != size || hex.EncodeToString(sent.Sum(nil)) != hex.EncodeToString(received.Sum(nil)) {
		t.Errorf("got %d of %d bytes back, %v, or other ones", n, size, err)
	}

	// A sandbox that dies cuts what still streams; it does not end it.
	req, err = http.NewRequestWithContext(ctx, "GET", publicURL(box, "https", 8080, "/events"), nil)
	if err != nil {
		t.Fatal(err)
	}
	dying, err := s.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer dying.Body.Close()
	if err := s.Client().Kill(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(dying.Body); err == nil {
		t.Error("the stream of a killed sandbox ended as if it were complete")
	}
	a := s.RequestAs(t, "", "GET", publicURL(box, "https", 8080, "/"), nil)
	if a.Status != 502 || !strings.Contains(a.Body, "The sandbox was not found") {
		t.Errorf("after the kill: %d %s", a.Status, a.Body)
	}
}
