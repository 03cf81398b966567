package ingress

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/secret"
)

func TestForwardedHeaders(t *testing.T) {
	w := newWorld(t)
	b := w.serve(tell)
	w.each(t, func(t *testing.T, c client) {
		req := c.request(t, "POST", b.host(), "/", strings.NewReader("hello"))
		forged := []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port",
			"X-Forwarded-Prefix", "X-Real-Ip", "X_forwarded_for", "X_real_ip"}
		for _, name := range forged {
			req.Header[name] = []string{"forged"}
		}
		req.Header["X-App"] = []string{"one", "two"}
		req.Header["Under_score"] = []string{"kept"}
		s := ask(t, c, req)
		want := map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": b.host(), "X-Forwarded-Proto": c.scheme}
		for _, name := range forged {
			if got := strings.Join(s.Header[name], "|"); got != want[name] {
				t.Errorf("%s arrived as %q, want %q", name, got, want[name])
			}
		}
		if s.Host != b.host() || s.Body != "hello" || fmt.Sprint(s.Header["X-App"]) != "[one two]" || s.Header["Under_score"] == nil {
			t.Errorf("app saw %+v", s)
		}
		for _, name := range []string{"Accept-Encoding", "Connection", "Te", "Transfer-Encoding"} {
			if v, ok := s.Header[name]; ok {
				t.Errorf("%s: %q was added", name, v)
			}
		}
	})
}

// Attack 34 and 38: no credential of ours reaches an app.
func TestAttack34CredentialsForwarded(t *testing.T) {
	const key, guestToken = "e2b_0123456789abcdef", "guesttoken"
	w := newWorld(t, func(cfg *Config) { cfg.IsKey = func(v string) bool { return v == key } })
	open := func(port uint16) *box {
		b := newBox(port)
		b.GuestToken = secret.New(guestToken)
		return w.serveOn(b, tell)
	}
	app, guest, code := open(0), open(49983), open(49999)
	cases := []struct {
		name, value      string
		app, guest, code bool // whether it arrives
	}{
		{"E2b-Traffic-Access-Token", "x", false, false, false},
		{"E2b_traffic_access_token", "x", false, false, false},
		{"Cube-Traffic-Access-Token", "x", false, false, false},
		{"E2b-Sandbox-Id", "x", false, false, false},
		{"E2b-Sandbox-Port", "x", false, false, false},
		{"X-Access-Token", guestToken, false, true, true},
		{"X_access_token", guestToken, false, true, true},
		{"X-Access-Token", "the app's own", true, true, true},
		{"X-Api-Key", key, false, false, false},
		{"X_api_key", key, false, false, false},
		{"X-Api-Key", "the app's own", true, true, true},
		{"Authorization", "Bearer " + key, false, false, false},
		{"Authorization", "bearer  " + key, false, false, false},
		{"Authorization", "Bearer the-apps-own", true, true, true},
		{"Authorization", "Basic dXNlcjo=", true, true, true},
	}
	w.each(t, func(t *testing.T, c client) {
		for _, x := range cases {
			for _, at := range []struct {
				b    *box
				want bool
			}{{app, x.app}, {guest, x.guest}, {code, x.code}} {
				req := c.request(t, "GET", at.b.host(), "/", nil)
				req.Header[x.name] = []string{x.value}
				if c.proto == 1 {
					// Being named as hop-by-hop must not save or doom it.
					req.Header.Set("Connection", "X-Nothing")
				}
				if _, got := ask(t, c, req).Header[x.name]; got != at.want {
					t.Errorf("%s: %s on port %d: arrived: %v, want %v", x.name, x.value, at.b.port, got, at.want)
				}
			}
		}
	})
}

// Nor does any after the body, nor a word there about where a request came from.
func TestAttack34TrailersForwarded(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		json.NewEncoder(rw).Encode(r.Trailer)
	})
	w.each(t, func(t *testing.T, c client) {
		req := c.request(t, "POST", b.host(), "/", io.MultiReader(strings.NewReader("body")))
		req.Trailer = http.Header{
			"E2b-Traffic-Access-Token": {"x"}, "Cube-Traffic-Access-Token": {"x"}, "X-Forwarded-For": {"192.0.2.1"}, "Forwarded": {"x"}, "X-Fine": {"y"},
		}
		if got := readAll(t, c.do(t, req).Body); got != `{"X-Fine":["y"]}`+"\n" {
			t.Errorf("trailers %s", got)
		}
	})
	// Trailers that nobody announced.
	answer := exchangeRaw(t, w.plain, "POST / HTTP/1.1\r\nHost: "+b.host()+"\r\nTransfer-Encoding: chunked\r\nTrailer: X-Fine\r\n\r\n0\r\nX-Fine: y\r\nX-Forwarded-For: x\r\nE2b-Traffic-Access-Token: x\r\n\r\n", 1)
	if !strings.HasSuffix(strings.TrimSpace(answer), `{"X-Fine":["y"]}`) {
		t.Errorf("trailers %q", answer)
	}
}

func TestHopByHopHeaders(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Connection", "X-Hop-Back")
		rw.Header().Set("X-Hop-Back", "1")
		rw.Header().Set("Keep-Alive", "timeout=5")
		tell(rw, r)
	})
	c := w.client("h1")
	req := c.request(t, "GET", b.host(), "/", nil)
	req.Header.Set("Connection", "X-Hop, X-Forwarded-For")
	for _, name := range []string{"X-Hop", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization"} {
		req.Header.Set(name, "1")
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s seen
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"X-Hop", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization"} {
		if _, ok := s.Header[name]; ok {
			t.Errorf("%s reached the app", name)
		}
	}
	if s.Header.Get("X-Forwarded-For") != "127.0.0.1" {
		t.Errorf("Connection: X-Forwarded-For took our own header away: %v", s.Header)
	}
	for _, name := range []string{"X-Hop-Back", "Keep-Alive"} {
		if resp.Header.Get(name) != "" {
			t.Errorf("%s reached the client", name)
		}
	}
}
