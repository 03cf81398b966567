package ingress

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/internal/ingress/link"
	"github.com/moat-sandbox/moat/internal/secret"
)

var linkKey = secret.New(strings.Repeat("5a", 32))

// servePrivate runs an app that only tokens and links lead to.
func (w *world) servePrivate(app http.HandlerFunc) *box {
	w.t.Helper()
	b := newBox(0)
	b.Public, b.Token, b.LinkKey = false, secret.New(strings.Repeat("ab", 32)), linkKey
	return w.serveOn(b, app)
}

// cookieFor is what a browser has after it followed a link.
func cookieFor(c client, b *box, expires time.Time) string {
	return c.cookieName() + "=" + link.Cookie.Sign(b.LinkKey, link.Grant{Sandbox: b.ID, Port: b.port, Expires: expires})
}

func (c client) cookieName() string {
	if c.scheme == "https" {
		return "__Host-moat-link"
	}
	return "moat-link"
}

func newLink(t testing.TB, b *box, life time.Duration) string {
	t.Helper()
	parameter, _, err := link.New(b.LinkKey, b.ID, b.port, life)
	if err != nil {
		t.Fatal(err)
	}
	return parameter
}

func TestLinkIsExchanged(t *testing.T) {
	w := newWorld(t)
	b := w.servePrivate(tell)
	w.each(t, func(t *testing.T, c client) {
		for sent, want := range map[string]string{
			"/?LINK":                   "/",
			"/a%2Fb/?x=1&LINK&y=%zz;2": "/a%2Fb/?x=1&y=%zz;2",
			"/a?LINK&":                 "/a?",
			"/a?&LINK":                 "/a?",
			"//evil.example/a?LINK":    "/.//evil.example/a",
			"/%5Cevil.example/a?LINK":  "/%5Cevil.example/a",
			"/.//evil.example?LINK":    "/.//evil.example",
		} {
			resp := c.get(t, b.host(), strings.ReplaceAll(sent, "LINK", newLink(t, b, time.Hour)))
			if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || strings.TrimSuffix(got, "?") != strings.TrimSuffix(want, "?") {
				t.Errorf("%s: got %d to %q, want %q", sent, resp.StatusCode, got, want)
			}
			if resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Referrer-Policy") != "no-referrer" {
				t.Errorf("%s: got headers %v", sent, resp.Header)
			}
			at, err := url.Parse(c.scheme + "://" + b.host() + "/")
			if err != nil {
				t.Fatal(err)
			}
			if to, err := at.Parse(resp.Header.Get("Location")); err != nil || to.Host != at.Host || strings.Contains(to.RawQuery, link.Parameter) {
				t.Errorf("%s: leads to %v, %v", sent, to, err)
			}
		}
		resp := c.get(t, b.host(), "/?"+newLink(t, b, time.Hour))
		cookies := resp.Cookies()
		if len(cookies) != 1 {
			t.Fatalf("got %d cookies", len(cookies))
		}
		got := cookies[0]
		if got.Name != c.cookieName() || got.Secure != (c.scheme == "https") || !got.HttpOnly ||
			got.SameSite != http.SameSiteLaxMode || got.Path != "/" || got.Domain != "" || got.MaxAge > 3600 || got.MaxAge < 3590 {
			t.Errorf("cookie %v", got)
		}
		req := c.request(t, "GET", b.host(), "/next", nil)
		req.AddCookie(got)
		if s := ask(t, c, req); s.URI != "/next" || s.Header["Cookie"] != nil {
			t.Errorf("app saw %+v", s)
		}
	})
	if strings.Contains(w.log.String(), link.Parameter) {
		t.Error("a link was logged")
	}
}

func TestLinkIsRefused(t *testing.T) {
	w := newWorld(t)
	b := w.servePrivate(func(http.ResponseWriter, *http.Request) { t.Error("the sandbox was contacted") })
	keyless := w.servePrivate(func(http.ResponseWriter, *http.Request) { t.Error("the sandbox was contacted") })
	keyless.LinkKey = secret.String{}
	w.boxes.put(keyless)
	sign := func(u link.Use, b *box, port uint16, life time.Duration) string {
		return link.Parameter + "=" + u.Sign(linkKey, link.Grant{Sandbox: b.ID, Port: port, Expires: time.Now().Add(life)})
	}
	good := sign(link.URL, b, b.port, time.Hour)
	w.each(t, func(t *testing.T, c client) {
		for what, x := range map[string]struct {
			b           *box
			query, code string
		}{
			"expired":        {b, sign(link.URL, b, b.port, -time.Second), "link_expired"},
			"other port":     {b, sign(link.URL, b, b.port+1, time.Hour), "link_invalid"},
			"other sandbox":  {b, sign(link.URL, keyless, b.port, time.Hour), "link_invalid"},
			"a cookie":       {b, sign(link.Cookie, b, b.port, time.Hour), "link_invalid"},
			"cut short":      {b, good[:len(good)-1], "link_invalid"},
			"empty":          {b, link.Parameter + "=", "link_invalid"},
			"no value":       {b, link.Parameter, "link_invalid"},
			"twice":          {b, good + "&" + good, "link_invalid"},
			"sandbox's key":  {keyless, sign(link.URL, keyless, keyless.port, time.Hour), "link_invalid"},
			"other name":     {b, "x-" + good, "traffic_token_missing"},
			"in capitals":    {b, strings.ToUpper(link.Parameter) + good[len(link.Parameter):], "traffic_token_missing"},
			"the token":      {b, link.Parameter + "=" + b.Token.Reveal(), "link_invalid"},
			"as a path":      {b, "/" + good, "traffic_token_missing"},
			"in a semicolon": {b, "a;" + good, "traffic_token_missing"},
		} {
			resp := c.get(t, x.b.host(), "/?"+x.query)
			if resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("Referrer-Policy") != "no-referrer" {
				t.Errorf("%s: got headers %v", what, resp.Header)
			}
			if text := wantFailure(t, resp, 403, x.code); strings.Contains(strings.Join(resp.Header["Location"], ""), "link") {
				t.Errorf("%s: %v", what, text)
			}
		}
		// Only who navigates comes by a link.
		wantFailure(t, c.do(t, c.request(t, "POST", b.host(), "/?"+good, strings.NewReader("x"))), 403, "traffic_token_missing")
	})
}

// A link that is not needed, or comes with a request that is let in by a token,
// does not reach the app either.
func TestAttack34LinksForwarded(t *testing.T) {
	w := newWorld(t)
	private, open := w.servePrivate(tell), newBox(0)
	open.LinkKey = linkKey
	w.serveOn(open, tell)
	w.each(t, func(t *testing.T, c client) {
		resp := c.get(t, open.host(), "/?a=1&"+newLink(t, open, time.Hour))
		if to := resp.Header.Get("Location"); resp.StatusCode != 303 || to != "/?a=1" || resp.Header.Get("Set-Cookie") != "" {
			t.Errorf("public: got %d to %q, cookie %q", resp.StatusCode, to, resp.Header.Get("Set-Cookie"))
		}
		post := c.request(t, "POST", private.host(), "/?a=1&"+newLink(t, private, time.Hour), strings.NewReader("x"))
		post.Header.Set("E2b-Traffic-Access-Token", private.Token.Reveal())
		if s := ask(t, c, post); s.URI != "/?a=1" {
			t.Errorf("with a token: app saw %s", s.URI)
		}
		for sent, want := range map[string]string{
			"NAME=x":                      "",
			"a=1; NAME=x; b=\"2; c\"":     "a=1; b=\"2; c\"",
			"NAME=x;a=1":                  "a=1",
			" NAME = x ; a=1":             "a=1",
			"a=NAME=x":                    "a=NAME=x",
			"a=1; __Host-moat-link=z":     "a=1",
			"moat-link=z; x-moat-link=ok": "x-moat-link=ok",
		} {
			req := c.request(t, "GET", open.host(), "/", nil)
			req.Header.Set("Cookie", strings.ReplaceAll(sent, "NAME", c.cookieName()))
			if s := ask(t, c, req); s.Header.Get("Cookie") != strings.ReplaceAll(want, "NAME", c.cookieName()) {
				t.Errorf("%s arrived as %q, want %q", sent, s.Header.Get("Cookie"), want)
			}
		}
	})
}

func TestPreflight(t *testing.T) {
	w := newWorld(t)
	strict := newWorld(t, func(cfg *Config) { cfg.RefusePreflight = true })
	contacted := func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(http.StatusTeapot) }
	private, open := w.servePrivate(contacted), w.serve(contacted)
	strict.boxes.put(private)
	type h = map[string]string
	full := h{"Origin": "https://app.example", "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-a, e2b-traffic-access-token"}
	ask := func(t *testing.T, c client, b *box, method string, headers h) *http.Response {
		req := c.request(t, method, b.host(), "/", nil)
		for name, value := range headers {
			req.Header.Set(name, value)
		}
		return c.do(t, req)
	}
	w.each(t, func(t *testing.T, c client) {
		resp := ask(t, c, private, "OPTIONS", full)
		wanted := h{
			"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "PUT",
			"Access-Control-Allow-Headers": "x-a, e2b-traffic-access-token", "Access-Control-Allow-Credentials": "",
		}
		for name, want := range wanted {
			if got := resp.Header.Get(name); resp.StatusCode != http.StatusNoContent || got != want {
				t.Errorf("got %d with %s: %q, want %q", resp.StatusCode, name, got, want)
			}
		}
		for what, x := range map[string]struct {
			method string
			h      h
		}{
			"another method": {"GET", full},
			"no method":      {"OPTIONS", h{"Origin": "https://app.example"}},
			"no origin":      {"OPTIONS", h{"Access-Control-Request-Method": "PUT"}},
		} {
			if resp := ask(t, c, private, x.method, x.h); resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s: got %d", what, resp.StatusCode)
			}
		}
		wrong := h{"Origin": "https://app.example", "Access-Control-Request-Method": "PUT", "E2b-Traffic-Access-Token": "wrong"}
		wantFailure(t, ask(t, c, private, "OPTIONS", wrong), 403, "traffic_token_invalid")
		if resp := ask(t, c, open, "OPTIONS", full); resp.StatusCode != http.StatusTeapot {
			t.Errorf("the app of a public port was not asked: %d", resp.StatusCode)
		}
	})
	wantFailure(t, ask(t, strict.client("h1"), private, "OPTIONS", full), 403, "traffic_token_missing")
}

// A web socket that a link let in ends when the link does; one that a token let
// in does not.
func TestLinkEndsStreams(t *testing.T) {
	w := newWorld(t)
	b := w.servePrivate(echoWebSocket)
	c := w.client("h1")
	dial := func(h http.Header) *websocket.Conn {
		h.Set("Origin", "http://"+b.host())
		conn, resp, err := websocket.Dial(context.Background(), "http://"+b.host()+"/ws", &websocket.DialOptions{HTTPClient: c.Client, HTTPHeader: h})
		if err != nil {
			t.Fatalf("%v (%v)", err, resp)
		}
		t.Cleanup(func() { conn.CloseNow() })
		return conn
	}
	expires := time.Now().Add(2 * time.Second).Truncate(time.Second)
	byLink := dial(http.Header{"Cookie": {cookieFor(c, b, expires)}})
	byToken := dial(http.Header{"E2b-Traffic-Access-Token": {b.Token.Reveal()}})
	within(t, 30*time.Second, "the end", func() {
		if _, _, err := byLink.Read(context.Background()); !isReset(err) {
			t.Errorf("got %v, want a reset", err)
		}
	})
	if now := time.Now(); now.Before(expires) {
		t.Errorf("ended %v early", expires.Sub(now))
	}
	if err := byToken.Write(context.Background(), websocket.MessageText, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := byToken.Read(context.Background()); err != nil {
		t.Errorf("the other one broke too: %v", err)
	}
}
