package wire

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestBasicUser(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for header, want := range map[string]string{
		"":                                "",
		"Basic " + encode("user:"):        "user",
		"basic " + encode("user:ignored"): "user",
		"Basic " + encode("user"):         "user",
		"Basic " + encode(":"):            "",
		"Basic":                           "",
	} {
		if got, err := basicUser(header); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", header, got, err, want)
		}
	}
	for _, header := range []string{"Basic !", "Bearer abc", encode("user:")} {
		if got, err := basicUser(header); err == nil {
			t.Errorf("%q: %q, want an error", header, got)
		}
	}
}

func FuzzBasicUser(f *testing.F) {
	f.Add("Basic dXNlcjo=")
	f.Add("Basic dXNlcg")
	f.Fuzz(func(t *testing.T, header string) {
		name, err := basicUser(header)
		if err == nil && strings.ContainsRune(name, ':') {
			t.Errorf("%q: user %q", header, name)
		}
		if err != nil && name != "" {
			t.Errorf("%q: user %q and error %v", header, name, err)
		}
	})
}
