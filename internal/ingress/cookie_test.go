package ingress

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/ingress/link"
	"github.com/moat-sandbox/moat/internal/secret"
)

// Attack 39: a cookie is good for pages of its own host, and for nobody else.
func TestAttack39CookieUsedCrossSite(t *testing.T) {
	w := newWorld(t)
	b := w.servePrivate(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "in") })
	neighbour := "https://8080-" + someID + "." + testDomain
	type h = map[string]string
	for _, x := range []struct {
		what, method string
		h            h // OWN stands for the port's own origin
		in           bool
	}{
		{"address bar", "GET", h{"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, true},
		{"link on another site", "GET", h{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, true},
		{"link on another sandbox", "GET", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, true},
		{"old browser", "GET", h{}, true},
		{"own fetch", "GET", h{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, true},
		{"own fetch with an origin", "GET", h{"Origin": "OWN", "Sec-Fetch-Site": "same-origin"}, true},
		{"own form", "POST", h{"Origin": "OWN", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, true},
		{"own delete", "DELETE", h{"Origin": "OWN"}, true},
		{"own web socket", "GET", h{"Origin": "OWN", "Upgrade": "websocket"}, true},

		{"program", "POST", h{}, false},
		{"web socket without an origin", "GET", h{"Upgrade": "websocket"}, false},
		{"web socket of a neighbour", "GET", h{"Origin": neighbour, "Upgrade": "websocket"}, false},
		{"web socket of nobody", "GET", h{"Origin": "null", "Upgrade": "websocket"}, false},
		{"fetch of a neighbour", "GET", h{"Origin": neighbour, "Sec-Fetch-Site": "same-site"}, false},
		{"script for a neighbour", "GET", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, false},
		{"image for another site", "GET", h{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, false},
		{"frame of a neighbour", "GET", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, false},
		{"form of a neighbour", "POST", h{"Origin": neighbour, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, false},
		{"form that forges an origin", "POST", h{"Origin": "OWN", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, false},
		{"own origin with a path", "POST", h{"Origin": "OWN/"}, false},
		{"own origin with a user", "POST", h{"Origin": "USER"}, false},
		{"another port", "POST", h{"Origin": "OWN:8443"}, false},
		{"longer host", "POST", h{"Origin": "OWN.evil.example"}, false},
		{"another scheme", "POST", h{"Origin": "ftp://" + b.host()}, false},
		{"not an origin", "POST", h{"Origin": "%zz"}, false},
		{"empty origin", "POST", h{"Origin": ""}, false},
	} {
		w.each(t, func(t *testing.T, c client) {
			if c.proto == 2 && x.h["Upgrade"] != "" {
				return // HTTP/2 knows no upgrades
			}
			req := c.request(t, x.method, b.host(), "/", nil)
			req.Header.Set("Cookie", cookieFor(c, b, time.Now().Add(time.Hour)))
			for name, value := range x.h {
				value = strings.ReplaceAll(value, "OWN", c.scheme+"://"+b.host())
				req.Header.Set(name, strings.ReplaceAll(value, "USER", c.scheme+"://me@"+b.host()))
				if name == "Upgrade" {
					req.Header.Set("Connection", "Upgrade")
				}
			}
			resp := c.do(t, req)
			if !x.in {
				wantFailure(t, resp, 403, "cross_site")
			} else if got := readAll(t, resp.Body); got != "in" {
				t.Errorf("%s: got %d %s", x.what, resp.StatusCode, got)
			}
		})
	}
}

func TestOriginOfABalancer(t *testing.T) {
	for _, x := range []struct {
		origin, host string
		overTLS      bool
		want         bool
	}{
		{"https://a.example", "a.example", true, true},
		{"https://a.example", "a.example:443", true, true},
		{"https://A.Example", "a.example", true, true},
		{"https://a.example:8443", "a.example:8443", true, true},
		{"https://a.example", "a.example", false, true}, // TLS ended in front of us
		{"http://a.example", "a.example:80", false, true},
		{"http://a.example", "a.example", true, false}, // somebody in between wrote that page
		{"https://a.example", "a.example:8443", true, false},
		{"https://a.example:80", "a.example", true, false},
	} {
		r := &http.Request{Host: x.host}
		if x.overTLS {
			r = overTLS(r)
		}
		if got := isOwnOrigin(x.origin, r); got != x.want {
			t.Errorf("origin %s for host %s, TLS %v: %v", x.origin, x.host, x.overTLS, got)
		}
	}
}

// Everything else that could be wrong with a cookie.
func TestCookieIsRefused(t *testing.T) {
	w := newWorld(t)
	b := w.servePrivate(tell)
	other := w.servePrivate(tell)
	otherKey := *b
	otherKey.LinkKey = secret.New("another")
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Second)
	w.each(t, func(t *testing.T, c client) {
		wrong, right := cookieFor(c, &otherKey, soon), cookieFor(c, b, soon)
		for what, x := range map[string]struct{ cookie, code string }{
			"expired":                  {cookieFor(c, b, past), "link_expired"},
			"revoked":                  {wrong, "link_invalid"},
			"of another sandbox":       {cookieFor(c, other, soon), "link_invalid"},
			"expired beside a wrong":   {wrong + "; " + cookieFor(c, b, past) + "; " + wrong, "link_expired"},
			"a link":                   {c.cookieName() + "=" + strings.TrimPrefix(newLink(t, b, time.Hour), link.Parameter+"="), "link_invalid"},
			"the token":                {c.cookieName() + "=" + b.Token.Reveal(), "link_invalid"},
			"of the other scheme":      {strings.Replace(strings.Replace(right, "__Host-", "", 1), "moat-link", map[string]string{"http": "__Host-moat-link", "https": "moat-link"}[c.scheme], 1), "traffic_token_missing"},
			"behind too many":          {strings.Repeat(wrong+"; ", maxCookies) + right, "link_invalid"},
			"beside a neighbour's":     {wrong + "; " + right, ""},
			"beside an app's own":      {"session=1; " + right, ""},
			"with a wrong header left": {right, "traffic_token_invalid"},
		} {
			req := c.request(t, "GET", b.host(), "/", nil)
			req.Header.Set("Cookie", x.cookie)
			if x.code == "traffic_token_invalid" {
				req.Header.Set("E2b-Traffic-Access-Token", "wrong")
			}
			if resp := c.do(t, req); x.code != "" {
				wantFailure(t, resp, 403, x.code)
			} else if resp.StatusCode != 200 {
				t.Errorf("%s: got %d", what, resp.StatusCode)
			}
		}
	})
}

// Attack 39: where sandboxes share a host, any of their pages could use any
// cookie. None is good there.
func TestAttack39CookieOnSharedHosts(t *testing.T) {
	w := newWorld(t)
	b := w.servePrivate(tell)
	c := w.client("h1")
	for _, host := range []string{"localhost", "127.0.0.1", "sandbox." + testDomain, "api." + testDomain} {
		for _, byPath := range []bool{true, false} {
			path := "/"
			if byPath {
				path = "/sandbox/" + b.ID + "/" + portText(b) + "/"
			} else if strings.HasPrefix(host, "api.") {
				continue // knows no routing headers
			}
			for _, query := range []string{"", "?" + newLink(t, b, time.Hour)} {
				req := c.request(t, "GET", host, path+query, nil)
				req.Header.Set("Cookie", cookieFor(c, b, time.Now().Add(time.Hour)))
				if !byPath {
					req.Header.Set("E2b-Sandbox-Id", b.ID)
					req.Header.Set("E2b-Sandbox-Port", portText(b))
				}
				resp := c.do(t, req)
				if resp.Header.Get("Set-Cookie") != "" {
					t.Errorf("%s%s set a cookie", host, path)
				}
				wantFailure(t, resp, 403, "traffic_token_missing")
			}
		}
	}
}
