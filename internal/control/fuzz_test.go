package control

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// errAccepted ends a create in the engine: the body was good.
var errAccepted = errors.New("accepted")

// FuzzCreate: whatever the body, the answer is well-formed, and what reaches
// the engine is what a second reading of the body asks for, within bounds.
func FuzzCreate(f *testing.F) {
	for _, bad := range badCreates {
		if len(bad.body) < 1000 {
			f.Add(bad.body)
		}
	}
	f.Add(`{"templateID":"base","timeout":300,"secure":true,"allow_internet_access":false,"metadata":{"a":"b"},"envVars":{"C":"d"},"network":{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"],"allowPublicTraffic":true}}`)
	for _, network := range goodNetworks {
		f.Add(`{"templateID":"base","network":` + network + `}`)
	}
	compile := func(d policy.Document) (*policy.Policy, error) { return policy.Parse(d, policy.Options{Rules: true}) }
	gate := newEngine(nil)
	gate.fails = errAccepted
	flows, err := audit.New(audit.Config{})
	if err != nil {
		f.Fatal(err)
	}
	a, err := New(Config{
		Store: openNothing{}, Engine: gate, Templates: &templates{}, Secrets: noSecrets{}, Flows: flows, Lifetime: context.Background(), Compile: compile,
		MaxTimeout: 24 * time.Hour, Scheme: "http", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body string) {
		gate.specs = nil
		w := httptest.NewRecorder()
		a.Operator().ServeHTTP(w, httptest.NewRequest("POST", "/v2/sandboxes", strings.NewReader(body)))
		var failure api.Error
		if err := json.Unmarshal(w.Body.Bytes(), &failure); err != nil || failure.Code != w.Code || failure.Message == "" {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		if len(gate.specs) == 0 {
			if w.Code != http.StatusBadRequest && w.Code != http.StatusNotFound {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			return
		}
		spec := gate.specs[0]
		_, refused := compile(spec.Network)
		if spec.Timeout <= 0 || spec.Timeout > 24*time.Hour || !spec.Secure || spec.Team != api.DefaultTeam || refused != nil {
			t.Fatalf("%q became %+v", body, spec)
		}
		var again map[string]any
		if err := json.Unmarshal([]byte(body), &again); err != nil {
			t.Fatalf("accepted %q: %v", body, err)
		}
		closed := again["allow_internet_access"] == false || again["allowInternetAccess"] == false
		if closed != (spec.Network.Default == policy.Deny) {
			t.Fatalf("%q became default %v", body, spec.Network.Default)
		}
		network, _ := again["network"].(map[string]any)
		for _, list := range []struct {
			spellings [2]string
			got       []string
		}{{[2]string{"allowOut", "allow_out"}, spec.Network.AllowOut}, {[2]string{"denyOut", "deny_out"}, spec.Network.DenyOut}} {
			for _, name := range list.spellings {
				if entries, given := network[name].([]any); given && fmt.Sprint(entries...) != fmt.Sprint(asAny(list.got)...) {
					t.Fatalf("%q became %s %v", body, name, list.got)
				}
			}
		}
		private := network["allowPublicTraffic"] == false || network["allow_public_traffic"] == false
		if private == spec.Ingress.Public {
			t.Fatalf("%q became public: %t", body, spec.Ingress.Public)
		}
		if strings.ContainsAny(spec.Ingress.MaskHost, " \t\r\n/@?#\\") || strings.ContainsFunc(spec.Ingress.MaskHost, func(r rune) bool { return r > '~' }) {
			t.Fatalf("took the mask %q", spec.Ingress.MaskHost)
		}
		if entries := countRules(network["rules"]); entries != len(spec.Network.Rules.Hosts)+len(spec.Network.Rules.Ordered) {
			t.Fatalf("%q became %+v", body, spec.Network.Rules)
		}
		if again["autoPause"] == true {
			t.Fatalf("accepted %q", body)
		}
	})
}

func countRules(given any) int {
	switch rules := given.(type) {
	case map[string]any:
		return len(rules)
	case []any:
		return len(rules)
	}
	return 0
}

func asAny(list []string) (all []any) {
	for _, s := range list {
		all = append(all, s)
	}
	return all
}

// FuzzMask: what is accepted is a host and no more, with every port in it.
func FuzzMask(f *testing.F) {
	for _, mask := range []string{"localhost:${PORT}", "[::1]:${PORT}", "${PORT}.app.test:80", "b\u00fccher.test", "http://x", "x:${PORT}0", "a b"} {
		f.Add(mask)
	}
	f.Fuzz(func(t *testing.T, mask string) {
		if checkMask(mask) != nil {
			return
		}
		for _, port := range []string{"1", "65535"} {
			host := strings.ReplaceAll(mask, "${PORT}", port)
			u, err := url.Parse("http://" + host + "/path")
			if err != nil || u.Host != host || u.Path != "/path" || u.Hostname() == "" || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
				t.Fatalf("%q with port %s is %+v, %v", mask, port, u, err)
			}
		}
	})
}

// FuzzNextToken: a token is either refused or exactly what String makes.
func FuzzNextToken(f *testing.F) {
	f.Add(cursor{micros: 1795255200123456, id: "iabc"}.String())
	f.Add("")
	f.Add("MTIz")
	f.Add("nonsense")
	for _, raw := range []string{"007.iabc", "+7.iabc", "7.iabc-x", "7.", ".iabc", "-1.iabc", "9223372036854775807.iabc"} {
		f.Add(base64.RawURLEncoding.EncodeToString([]byte(raw)))
	}
	f.Fuzz(func(t *testing.T, token string) {
		c, err := parseCursor(token)
		if err != nil {
			var refusal *fault
			if !errors.As(err, &refusal) || refusal.status != http.StatusBadRequest || c != (cursor{}) {
				t.Fatalf("refused with %v and %+v", err, c)
			}
			return
		}
		if c.String() != token || !sandboxIDForm(c.id) {
			t.Fatalf("%q became %+v", token, c)
		}
	})
}

func sandboxIDForm(id string) bool { short, ok := shortID(id); return ok && short == id }

// FuzzMetadataFilter: what a client encodes is what the filter looks for, and
// nothing makes it panic.
func FuzzMetadataFilter(f *testing.F) {
	f.Add("k%201=v%262", "k 1", "v&2")
	f.Add("a=b&a=c", "", "")
	f.Add("%", "ключ", "=")
	f.Fuzz(func(t *testing.T, raw, key, value string) {
		if _, err := parseMetadata(raw); err != nil {
			var refusal *fault
			if !errors.As(err, &refusal) || refusal.status != http.StatusBadRequest {
				t.Fatalf("%q: %v", raw, err)
			}
		}
		metadata := map[string]string{key: value}
		values, err := url.ParseQuery("metadata=" + url.QueryEscape(asE2B(metadata)))
		if err != nil {
			t.Fatal(err)
		}
		pairs, err := parseMetadata(values.Get("metadata"))
		if err != nil || len(pairs) != 1 || !matches(metadata, pairs) {
			t.Fatalf("%q=%q became %v, %v", key, value, pairs, err)
		}
		if matches(map[string]string{key: value + "x"}, pairs) || matches(nil, pairs) {
			t.Fatalf("%v takes what it must not", pairs)
		}
	})
}

// FuzzSandboxID: only letters, digits and one inner dash pass, and the dash is
// gone.
func FuzzSandboxID(f *testing.F) {
	f.Add(sandbox.NewID())
	f.Add(sandbox.NewID() + "-" + api.ClientID)
	f.Add("a-b-c")
	f.Fuzz(func(t *testing.T, s string) {
		id, ok := shortID(s)
		if ok && (id == "" || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") != "" || !strings.HasPrefix(s, id)) {
			t.Fatalf("%q became %q", s, id)
		}
	})
}
