package rewrite_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress/proxy/rewrite"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

const value = "sk-LIVE-42 \xff ü"

// known is the one secret there is.
type known struct{}

func (known) Secret(team, name string) (s secret.String, ok bool) {
	if team != "team" || name != "key" {
		return s, false
	}
	return secret.New(value), true
}

// action is what a rule does that sets headers, given as pairs.
func action(t testing.TB, strip bool, headers ...string) policy.Action {
	t.Helper()
	a := policy.Action{Verdict: policy.Allow, Strip: strip}
	for i := 0; i < len(headers); i += 2 {
		template, err := policy.ParseTemplate(secret.New(headers[i+1]))
		if err != nil {
			t.Fatal(err)
		}
		a.Inject = append(a.Inject, policy.Injection{Header: headers[i], Value: template})
	}
	return a
}

func change(t testing.TB, a policy.Action) rewrite.Change {
	t.Helper()
	c, err := rewrite.New(a, "team", known{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHeader(t *testing.T) {
	c := change(t, action(t, false, "X-Api-Key", "a${e2b.secrets.key}b", "X-Empty", ""))
	h := http.Header{
		"X-Api-Key": {"1", "2"}, "x-api-key": {"3"}, "X_API_KEY": {"4"}, "X-Api_key": {"5"},
		"X-Empty": {"6"}, "X-Api-Keys": {"kept"}, "Authorization": {"kept"},
	}
	c.Header(h)
	want := http.Header{"X-Api-Key": {"a" + value + "b"}, "X-Empty": {""}, "X-Api-Keys": {"kept"}, "Authorization": {"kept"}}
	if !reflect.DeepEqual(h, want) {
		t.Errorf("%q, want %q", h, want)
	}
	trailer := http.Header{"X-Api-Key": nil, "X_api_key": {"1"}, "X-Kept": nil}
	c.Trailer(trailer)
	if !reflect.DeepEqual(trailer, http.Header{"X-Kept": nil}) {
		t.Errorf("trailer %q", trailer)
	}
	if got := c.Names(); !slices.Equal(got, []string{"X-Api-Key", "X-Empty"}) {
		t.Errorf("names %q", got)
	}
	if text := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(text, "LIVE") {
		t.Errorf("a change shows the secret: %s", text)
	}
	untouched := http.Header{"X_a": {"1"}}
	rewrite.Change{}.Header(untouched)
	if len(untouched) != 1 {
		t.Error("the zero Change changes something")
	}
}

func TestStrip(t *testing.T) {
	c := change(t, action(t, true, "Authorization", "Bearer ${e2b.secrets.key}"))
	h := http.Header{"Authorization": {"own"}, "Cookie": {"own"}, "X_api_key": {"own"}, "X-Auth-Token": {"own"}, "Accept": {"*/*"}}
	c.Header(h)
	if want := (http.Header{"Authorization": {"Bearer " + value}, "Accept": {"*/*"}}); !reflect.DeepEqual(h, want) {
		t.Errorf("%q, want %q", h, want)
	}
	for in, want := range map[string]string{
		"/a?b=1":                             "/a?b=1",
		"/a":                                 "/a",
		"/a?":                                "/a?",
		"*":                                  "*",
		"/a?api_key=x":                       "/a",
		"/a?API_KEY=x&b=%2f&token":           "/a?b=%2f",
		"/a?b=1&access%5Ftoken=x&c":          "/a?b=1&c",
		"/a?b=1;token=x&c=2":                 "/a?c=2",
		"/a?&&b&&":                           "/a?&&b&&",
		"/token=x?b=token":                   "/token=x?b=token",
		"/a?b=1?token=x":                     "/a?b=1?token=x",
		"/a?%zz=1&to%6Ben=x&+key+=x&monkey=": "/a?%zz=1&monkey=",
	} {
		if got := c.Target(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
	if got := change(t, action(t, false, "A", "b")).Target("/a?token=x"); got != "/a?token=x" {
		t.Errorf("without being told, the query becomes %q", got)
	}
}

// What has no value, and what would make another request of it, is not sent.
func TestFailsClosed(t *testing.T) {
	var unknown *policy.UnknownSecretError
	if _, err := rewrite.New(action(t, false, "A", "${e2b.secrets.other}"), "team", known{}); !errors.As(err, &unknown) {
		t.Errorf("unknown secret: %v", err)
	}
	if _, err := rewrite.New(action(t, false, "A", "${e2b.secrets.key}"), "others", known{}); !errors.As(err, &unknown) {
		t.Errorf("another team's secret: %v", err)
	}
	if _, err := rewrite.New(policy.Action{Inject: []policy.Injection{{Header: "A"}}}, "team", known{}); err == nil {
		t.Error("a header without a value is set")
	}
	for _, name := range []string{"Host", "content-length", "Transfer-Encoding", "Connection", "TE", "Upgrade", "Trailer"} {
		if _, err := rewrite.New(action(t, false, name, "x"), "team", known{}); err == nil {
			t.Errorf("%s can be set", name)
		}
	}
}

// FuzzTarget holds what is left of a query to net/url: no credential, and
// nothing that was not there.
func FuzzTarget(f *testing.F) {
	for _, target := range []string{"/?a=b", "/?token=x&a", "/?a;key=1", "/?%74oken=1&&=", "*", "/?a?b#"} {
		f.Add(target)
	}
	c := rewrite.Change{}
	var err error
	if c, err = rewrite.New(policy.Action{Verdict: policy.Allow, Strip: true}, "team", known{}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, target string) {
		got := c.Target(target)
		path, query, _ := strings.Cut(got, "?")
		before, _, _ := strings.Cut(target, "?")
		if path != before || len(got) > len(target) {
			t.Errorf("%q becomes %q", target, got)
		}
		if again := c.Target(got); again != got {
			t.Errorf("%q becomes %q and then %q", target, got, again)
		}
		values, err := url.ParseQuery(query)
		if err != nil {
			return // a server would see less
		}
		for name := range values {
			if policy.CredentialParameter(name) {
				t.Errorf("%q becomes %q, with %q in it", target, got, name)
			}
		}
	})
}
