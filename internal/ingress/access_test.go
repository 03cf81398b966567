package ingress

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/secret"
)

// Attack 33: every way of not having the token.
func TestAttack33MissingOrWrongToken(t *testing.T) {
	token, guestToken := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	w := newWorld(t)
	private := func(port uint16) *box {
		b := newBox(port)
		b.Public, b.Token, b.GuestToken = false, secret.New(token), secret.New(guestToken)
		return w.serveOn(b, func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "in") })
	}
	app, guest := private(0), private(49983)
	type headers = map[string][]string
	const missing, invalid = "traffic_token_missing", "traffic_token_invalid"
	cases := []struct {
		what string
		h    headers
		app  string // error_code, or "" for being let in
		// guest is what happens on the guest daemon's port.
		guest string
	}{
		{"nothing", headers{}, missing, missing},
		{"right", headers{"E2b-Traffic-Access-Token": {token}}, "", ""},
		{"right, Cube's header", headers{"Cube-Traffic-Access-Token": {token}}, "", ""},
		{"both right", headers{"E2b-Traffic-Access-Token": {token}, "Cube-Traffic-Access-Token": {token}}, "", ""},
		{"empty", headers{"E2b-Traffic-Access-Token": {""}}, invalid, invalid},
		{"wrong", headers{"E2b-Traffic-Access-Token": {"x" + token[1:]}}, invalid, invalid},
		{"a part", headers{"E2b-Traffic-Access-Token": {token[:63]}}, invalid, invalid},
		{"more", headers{"E2b-Traffic-Access-Token": {token + "0"}}, invalid, invalid},
		{"upper case", headers{"E2b-Traffic-Access-Token": {strings.ToUpper(token)}}, invalid, invalid},
		{"very long", headers{"E2b-Traffic-Access-Token": {strings.Repeat(token, 500)}}, invalid, invalid},
		{"twice", headers{"E2b-Traffic-Access-Token": {token, token}}, invalid, invalid},
		{"joined", headers{"E2b-Traffic-Access-Token": {token + ", " + token}}, invalid, invalid},
		{"E2B's header wins", headers{"E2b-Traffic-Access-Token": {"no"}, "Cube-Traffic-Access-Token": {token}}, invalid, invalid},
		{"E2B's header wins when empty", headers{"E2b-Traffic-Access-Token": {""}, "Cube-Traffic-Access-Token": {token}}, invalid, invalid},
		{"Cube's header wrong", headers{"Cube-Traffic-Access-Token": {"no"}}, invalid, invalid},
		{"with underscores", headers{"E2b_traffic_access_token": {token}}, missing, missing},
		{"guest's token", headers{"X-Access-Token": {guestToken}}, missing, ""},
		{"guest's token wrong", headers{"X-Access-Token": {token}}, missing, missing},
		{"guest's token twice", headers{"X-Access-Token": {guestToken, guestToken}}, missing, missing},
		{"in the query and a cookie", headers{"Cookie": {"e2b-traffic-access-token=" + token}}, missing, missing},
	}
	w.each(t, func(t *testing.T, c client) {
		for _, x := range cases {
			for _, port := range []struct {
				b    *box
				want string
			}{{app, x.app}, {guest, x.guest}} {
				req := c.request(t, "GET", port.b.host(), "/?e2b-traffic-access-token="+token, nil)
				for name, values := range x.h {
					req.Header[name] = values
				}
				resp := c.do(t, req)
				if port.want != "" {
					wantFailure(t, resp, 403, port.want)
				} else if got := readAll(t, resp.Body); got != "in" {
					t.Errorf("%s, port %d: got %d %q", x.what, port.b.port, resp.StatusCode, got)
				}
			}
		}
	})
	if log := w.log.String(); strings.Contains(log, token) || strings.Contains(log, guestToken) {
		t.Error("a token was logged")
	}
}

func TestTokenMessages(t *testing.T) {
	w := newWorld(t)
	b := w.serveRaw(func(net.Conn) { t.Error("the sandbox was contacted") })
	b.Public, b.Token = false, secret.New("right")
	w.boxes.put(b)
	c := w.client("h1")
	got := wantFailure(t, c.get(t, b.host(), "/"), 403, "traffic_token_missing")
	if got["message"] != "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing" ||
		got["error"] != "forbidden" || got["sandboxId"] != b.ID {
		t.Errorf("missing: got %v", got)
	}
	req := c.request(t, "GET", b.host(), "/", nil)
	req.Header.Set("E2B-Traffic-Access-Token", "wrong")
	got = wantFailure(t, c.do(t, req), 403, "traffic_token_invalid")
	if got["message"] != "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid" {
		t.Errorf("invalid: got %v", got)
	}
}

// A target that nobody made public and that has no token lets nobody in.
func TestZeroTargetIsPrivate(t *testing.T) {
	w := newWorld(t)
	b := newBox(0)
	b.Public = false
	w.serveOn(b, func(http.ResponseWriter, *http.Request) { t.Error("the sandbox was contacted") })
	c := w.client("h1")
	for _, name := range []string{"E2b-Traffic-Access-Token", "X-Access-Token", "X-Other"} {
		req := c.request(t, "GET", b.host(), "/", nil)
		req.Header.Set(name, "")
		if resp := c.do(t, req); resp.StatusCode != 403 {
			t.Errorf("%s: got %d", name, resp.StatusCode)
		}
	}
}
