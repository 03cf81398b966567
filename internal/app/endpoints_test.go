package app

import "testing"

func TestScheme(t *testing.T) {
	for _, c := range []struct{ domain, http, https, want string }{
		{"moat.localhost:6628", "127.0.0.1:6628", "", "http"},
		{"moat.test", ":80", "", "http"},
		{"moat.test", ":80", ":443", "https"},
		{"moat.test", "", ":8443", "https"},
		{"moat.test:8443", ":8080", ":8443", "https"},
		{"moat.test:8080", ":8080", ":8443", "http"},
		{"moat.test:9443", ":8080", ":8443", "https"}, // somebody maps ports
		{"moat.test", "127.0.0.1:6628", "", "https"},  // somebody in front has a certificate
	} {
		if got := scheme(Config{Domain: c.domain, HTTP: c.http, HTTPS: c.https}); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
