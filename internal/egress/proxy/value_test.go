package proxy_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// What a rule sets arrives byte for byte, whatever a header may have in it, and
// however long a secret is.
func TestValueArrivesAsItIs(t *testing.T) {
	for what, dial := range map[string]func(*box, testing.TB) *http.Client{
		"http, 1":  (*box).client,
		"https, 1": func(b *box, t testing.TB) *http.Client { return b.https(t, 1) },
		"https, 2": func(b *box, t testing.TB) *http.Client { return b.https(t, 2) },
	} {
		w := newWorld(t, proxy.Limits{})
		var got []string
		note := func(_ http.ResponseWriter, r *http.Request) { got = r.Header["X-Key"] }
		w.site(t, "example.com", note)
		w.secure2(t, "example.com", note)
		b := w.box(t, 1)
		c := dial(b, t)
		scheme, _, _ := strings.Cut(what, ",")
		for _, value := range []string{"a  b", "a\tb", `",;=\ %20${X}`, "grüß", "\x80\xff", "", strings.Repeat("0123456789abcdef", policy.MaxSecret/16)} {
			doc, want := ruled("example.com", "x-kEY", value), value
			if value != "" {
				w.secrets.set("team/long", value)
				doc, want = ruled("example.com", "x-kEY", "<${e2b.secrets.long}>"), "<"+value+">"
			}
			b.change(t, doc)
			got = nil
			answer, err := c.Do(request(t, "GET", scheme+"://example.com/", "X-Key", "own", "x-key", "own"))
			if err != nil {
				t.Fatalf("%s: %q: %v", what, want, err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK || !slices.Equal(got, []string{want}) {
				t.Errorf("%s: %.20q arrived as %.20q, %s", what, want, got, answer.Status)
			}
		}
	}
}
