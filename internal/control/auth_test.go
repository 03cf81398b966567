package control

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/store/bolt"
)

func TestAuthentication(t *testing.T) {
	r := newRig(t)
	r.create(keyA, "")
	for name, test := range map[string]struct {
		header http.Header
		status int
	}{
		"none":                      {http.Header{}, 401},
		"right":                     {http.Header{"X-Api-Key": {keyA}}, 200},
		"bearer":                    {http.Header{"Authorization": {"Bearer " + keyA}}, 200},
		"bearer, lower case":        {http.Header{"Authorization": {"bearer " + keyA}}, 200},
		"unknown":                   {http.Header{"X-Api-Key": {strings.Replace(keyA, "a", "c", 1)}}, 401},
		"prefix of a key":           {http.Header{"X-Api-Key": {keyA[:len(keyA)-1]}}, 401},
		"longer":                    {http.Header{"X-Api-Key": {keyA + "a"}}, 401},
		"its hash":                  {http.Header{"X-Api-Key": {secret.Hash(keyA)}}, 401},
		"its hash, dressed":         {http.Header{"X-Api-Key": {"e2b_" + secret.Hash(keyA)}}, 401},
		"upper case":                {http.Header{"X-Api-Key": {strings.ToUpper(keyA)}}, 401},
		"empty":                     {http.Header{"X-Api-Key": {""}}, 401},
		"e2b_ only":                 {http.Header{"X-Api-Key": {"e2b_"}}, 401},
		"huge":                      {http.Header{"X-Api-Key": {"e2b_" + strings.Repeat("a", 100_000)}}, 401},
		"twice":                     {http.Header{"X-Api-Key": {keyA, keyA}}, 401},
		"wrong, bearer right":       {http.Header{"X-Api-Key": {"e2b_00"}, "Authorization": {"Bearer " + keyA}}, 401},
		"empty, bearer right":       {http.Header{"X-Api-Key": {""}, "Authorization": {"Bearer " + keyA}}, 401},
		"right, bearer of another":  {http.Header{"X-Api-Key": {keyA}, "Authorization": {"Bearer x"}}, 200},
		"basic":                     {http.Header{"Authorization": {"Basic " + keyA}}, 401},
		"bearer, twice":             {http.Header{"Authorization": {"Bearer " + keyA, "Bearer " + keyA}}, 401},
		"bearer with nothing":       {http.Header{"Authorization": {"Bearer"}}, 401},
		"E2B's access token scheme": {http.Header{"Authorization": {"Bearer sk_e2b_00"}}, 401},
	} {
		for _, server := range []string{r.public.URL, r.operator.URL} {
			request, err := http.NewRequestWithContext(t.Context(), "GET", server+"/sandboxes", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header = test.header
			got := r.do(request)
			if server == r.operator.URL && name == "none" {
				got.want(http.StatusOK) // the operator needs no key
				continue
			}
			if got.want(test.status); test.status == 200 && !strings.Contains(got.body, "sandboxID") {
				t.Errorf("%s: acts for another team: %s", name, got.body)
			}
			if strings.Contains(got.body, keyA) {
				t.Errorf("%s: the answer repeats the key", name)
			}
		}
	}
	if strings.Contains(r.log.String(), "e2b_") {
		t.Errorf("a key is in the log: %s", r.log)
	}
}

// TestEveryRouteNeedsAKey: all but the health check.
func TestEveryRouteNeedsAKey(t *testing.T) {
	r := newRig(t)
	for _, route := range publicRoutes {
		method, path, _ := strings.Cut(route.pattern, " ")
		got := r.send("", method, filled(path), `{"templateID":"base"}`)
		if path == "/health" {
			got.want(http.StatusOK)
			continue
		}
		got.want(http.StatusUnauthorized, "API key is missing")
	}
	if n := r.engine.created(); n != 0 {
		t.Errorf("%d sandboxes were created without a key", n)
	}
}

// filled replaces a path's wildcards.
func filled(path string) string {
	return regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "iaaa")
}

// TestOperatorRoutesAreNotPublic: the public API does not know them, with any
// key.
func TestOperatorRoutesAreNotPublic(t *testing.T) {
	r := newRig(t)
	for _, route := range operatorRoutes {
		method, path, _ := strings.Cut(route.pattern, " ")
		r.send(keyA, method, filled(path), `{}`).want(http.StatusNotFound, "No such route")
	}
}

// TestOperatorKeyCounts: a key that is sent on the operator's socket must be
// right, on every route.
func TestOperatorKeyCounts(t *testing.T) {
	r := newRig(t)
	for _, route := range operatorRoutes {
		method, path, _ := strings.Cut(route.pattern, " ")
		r.sendTo(r.operator, "e2b_00", method, filled(path), `{"names":["x"],"dir":"/x"}`).want(http.StatusUnauthorized)
	}
	if len(r.templates.added)+len(r.templates.removed) > 0 {
		t.Error("a wrong key changed the templates")
	}
}

func TestIsKey(t *testing.T) {
	r := newRig(t)
	for value, want := range map[string]bool{keyA: true, keyB: true, keyA + "a": false, "": false, "e2b_00": false, secret.Hash(keyA): false} {
		if got := r.api.IsKey(value); got != want {
			t.Errorf("IsKey(%q) = %t", value, got)
		}
	}
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	if !r.api.IsKey(keyA) {
		t.Error("a key does not count as one when the store cannot be asked")
	}
}

func openStore(t *testing.T) store.Store {
	t.Helper()
	s, err := bolt.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// works says whether the store takes a key, and for which team.
func works(t *testing.T, s store.Store, key string) string {
	t.Helper()
	k, err := s.KeyByHash(t.Context(), secret.Hash(key))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	return k.Team
}

func TestBootstrapGeneratesOnce(t *testing.T) {
	s := openStore(t)
	first, err := Bootstrap(t.Context(), s, secret.String{})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^e2b_[0-9a-f]{40}$`).MatchString(first.Reveal()) {
		t.Errorf("generated %q", first.Reveal())
	}
	if team := works(t, s, first.Reveal()); team != api.DefaultTeam {
		t.Errorf("the key is for team %q", team)
	}
	again, err := Bootstrap(t.Context(), s, secret.String{})
	if err != nil || !again.Empty() {
		t.Errorf("second start: generated %q, %v", again.Reveal(), err)
	}
	keys, err := s.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 1 || strings.Contains(keys[0].Prefix+keys[0].Hash+keys[0].Name, first.Reveal()[8:]) {
		t.Errorf("kept at rest: %+v", keys)
	}
}

func TestBootstrapPreset(t *testing.T) {
	s := openStore(t)
	start := func(preset string) secret.String {
		t.Helper()
		generated, err := Bootstrap(t.Context(), s, secret.New(preset))
		if err != nil {
			t.Fatal(err)
		}
		return generated
	}
	for range 2 { // as often as one starts
		if generated := start("e2b_01"); !generated.Empty() || works(t, s, "e2b_01") != api.DefaultTeam {
			t.Fatalf("preset key: generated %q", generated.Reveal())
		}
	}
	// Another setting revokes the first.
	start("e2b_02")
	if works(t, s, "e2b_01") != "" || works(t, s, "e2b_02") != api.DefaultTeam {
		t.Error("changing the preset key leaves the old one or does not take the new one")
	}
	// No setting revokes it too; then there is no key, and one is generated.
	generated := start("")
	if works(t, s, "e2b_02") != "" || generated.Empty() {
		t.Error("a key that is no longer preset works")
	}
	// Presetting a key that was issued leaves it as issued.
	start(generated.Reveal())
	start("")
	if works(t, s, generated.Reveal()) == "" {
		t.Error("presetting an issued key, then not, revoked it")
	}
}

func TestBootstrapRefusesMalformed(t *testing.T) {
	for _, preset := range []string{"secret", "e2b_", "e2b_XYZ", "e2b_ABCDEF", " e2b_00", "e2b_00\n", "e2b_" + strings.Repeat("0", 300)} {
		s := openStore(t)
		_, err := Bootstrap(t.Context(), s, secret.New(preset))
		if err == nil || !strings.Contains(err.Error(), "hexadecimal") {
			t.Errorf("%q: %v", preset, err)
		}
		if err != nil && strings.Contains(err.Error(), strings.TrimSpace(preset)) && preset != "e2b_" {
			t.Errorf("the error repeats the key: %v", err)
		}
		keys, err := s.Keys(context.Background())
		if err != nil || len(keys) != 0 {
			t.Errorf("%q: keys %v, %v", preset, keys, err)
		}
	}
}

func TestKeyPrefix(t *testing.T) {
	for key, want := range map[string]string{keyA: "e2b_aaaa", "e2b_0123456789": "e2b_", "e2b_00": "e2b_"} {
		if got := keyPrefix(key); got != want {
			t.Errorf("%s: prefix %q, want %q", key, got, want)
		}
	}
}
