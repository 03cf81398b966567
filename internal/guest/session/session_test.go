package session

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/guest/account"
)

func TestTokens(t *testing.T) {
	s := NewSettings("token", "", "", nil)
	for _, wrong := range []string{"", "Token", "toke", "token ", "tokentoken"} {
		if s.Authorized(wrong) {
			t.Errorf("%q is authorized", wrong)
		}
	}
	if !s.Authorized("token") || s.Open() {
		t.Error("the token is refused, or not needed")
	}
	if open := NewSettings("", "", "", nil); !open.Open() || !open.Authorized("") || !open.Authorized("any") {
		t.Error("without a token callers are refused")
	}
}

func TestNothingPrintsTheToken(t *testing.T) {
	s := NewSettings("very-secret", "user", "/", map[string]string{"A": "B"})
	asJSON, err := json.Marshal(map[string]any{"settings": s})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", s, s, s), fmt.Sprintf("%+v %#v", *s, *s), string(asJSON)} {
		if strings.Contains(text, "very-secret") {
			t.Errorf("printed: %s", text)
		}
	}
}

func TestPaths(t *testing.T) {
	u := account.User{Name: "u", Home: "/home/u"}
	for _, c := range []struct{ workdir, path, want string }{
		{"", "", "/home/u"},
		{"", "a", "/home/u/a"},
		{"", "~", "/home/u"},
		{"", "~/a", "/home/u/a"},
		{"", "~other/a", "/home/u/~other/a"},
		{"", "a/~", "/home/u/a/~"},
		{"", "/a//b/./c/..", "/a/b"},
		{"", "../../../..", "/"},
		{"/work", "", "/work"},
		{"/work", "a", "/work/a"},
		{"/work", "~/a", "/home/u/a"},
		{"~/w", "a", "/home/u/w/a"},
	} {
		if got := NewSettings("", "", c.workdir, nil).Path(u, c.path); got != c.want {
			t.Errorf("%q in %q is %q, want %q", c.path, c.workdir, got, c.want)
		}
	}
}

func TestEnvironmentIsACopy(t *testing.T) {
	given := map[string]string{"A": "1"}
	s := NewSettings("", "", "", given)
	given["A"] = "2"
	s.Env()["A"] = "3"
	if got := s.Env()["A"]; got != "1" {
		t.Errorf("A = %q", got)
	}
}

// Nothing but what sign made for exactly this request verifies.
func FuzzVerify(f *testing.F) {
	f.Add("/f", "read", "", "v1_x", "", "")
	f.Add("/f:write", "read", "u", "", "123", "token")
	f.Add("", "write", "", "v1_", "99999999999999", "")
	f.Fuzz(func(t *testing.T, path, op, user, signature, expiration, header string) {
		const token = "0123456789abcdef"
		s := NewSettings(token, "", "", nil)
		now := time.Unix(1000, 0)
		query := url.Values{"path": {path}, "username": {user}, "signature": {signature}}
		if expiration != "" {
			query.Set("signature_expiration", expiration)
		}
		if err := s.Verify(header, query, Operation(op), now); err == nil && header != token {
			t.Fatalf("accepted %v", query)
		}
		parts := []string{path, op, user, token}
		until, err := strconv.ParseInt(expiration, 10, 64)
		if expiration != "" {
			if err != nil {
				return
			}
			parts = append(parts, strconv.FormatInt(until, 10))
		}
		query.Set("signature", sign(parts))
		err = s.Verify("", query, Operation(op), now)
		if expired := expiration != "" && until < 1000; (err == nil) == expired {
			t.Fatalf("own signature for %v: %v", query, err)
		}
	})
}
