package proxy_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// What rules deny and what none of them matches is answered with 403, as
// CubeSandbox's clients expect it, and with what our records say of it. The
// connection can be used again.
func TestRefusedByRules(t *testing.T) {
	for what, dial := range map[string]func(*box, testing.TB) *http.Client{
		"in the clear": (*box).client,
		"HTTP/1.1":     func(b *box, t testing.TB) *http.Client { return b.https(t, 1) },
		"HTTP/2":       func(b *box, t testing.TB) *http.Client { return b.https(t, 2) },
	} {
		w := newWorld(t, proxy.Limits{})
		w.site(t, "example.com", show)
		w.secure2(t, "example.com", show)
		b := w.box(t, 1)
		b.change(t, policy.Document{Rules: ordered(
			policy.OrderedRule{Name: "no-admin", Match: policy.Match{Host: "example.com", Path: "/admin*"}},
			policy.OrderedRule{Name: "read", Match: policy.Match{Host: "example.com", Methods: []string{"GET"}}, Allow: true},
		)})
		c, url := dial(b, t), "https://example.com"
		if what == "in the clear" {
			url = "http://example.com"
		}
		for i, x := range []struct{ method, path, matched, reason string }{
			{"GET", "/admin", "no-admin", "rule no-admin denies the request"},
			{"PUT", "/", "", "no rule for example.com matches the request"},
		} {
			r := request(t, x.method, url+x.path)
			answer, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			var why refusal
			if err != nil || json.Unmarshal(body, &why) != nil || answer.StatusCode != http.StatusForbidden {
				t.Fatalf("%s: %s %s, %v", what, answer.Status, body, err)
			}
			if h := answer.Header; h.Get("Content-Type") != "application/json" || h.Get("Cache-Control") != "no-store" || answer.ContentLength != int64(len(body)) {
				t.Errorf("%s: %v", what, h)
			}
			record := b.records(t, i+1)[i]
			told := refusal{Error: "blocked by the sandbox's network policy", Reason: x.reason, Rule: "rules", Decision: record.ID.String(), Host: "example.com"}
			if why != told || record.Matched != x.matched || record.Status != http.StatusForbidden || !strings.HasPrefix(record.Reason, x.reason) {
				t.Errorf("%s: the client is told %+v, the record is %+v", what, why, record)
			}
		}
		ask(t, c, request(t, "GET", url+"/"))
	}
}
