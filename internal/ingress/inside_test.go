package ingress

import (
	"io"
	"net/http"
	"testing"
)

// inside is an ingress for callers that are sandboxes themselves.
func inside(t *testing.T) *world {
	return newWorld(t, func(c *Config) { c.API = nil })
}

// openFor makes a client open its TLS connections for a name, whatever it then
// asks for.
func (c client) openFor(name string) client {
	c.Transport.(*http.Transport).TLSClientConfig.ServerName = name
	return c
}

func sayHello(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }

// TestAttack26OnlyPublicURLsInside: sandboxes get to each other's own hosts and to
// nothing else, whatever it is asked for by.
func TestAttack26OnlyPublicURLsInside(t *testing.T) {
	w := inside(t)
	b := w.serve(sayHello)
	for _, name := range []string{"h1", "h1tls", "h2", "h2c"} {
		t.Run(name, func(t *testing.T) {
			c := w.client(name)
			if got := readAll(t, c.get(t, b.host(), "/").Body); got != "hello" {
				t.Errorf("the sandbox's own host: %q", got)
			}
			for _, host := range []string{"api.moat.test", "moat.test", "sandbox.moat.test", "localhost", "127.0.0.1", "example.com", "198.19.255.2"} {
				c := w.client(name).openFor(b.host())
				wantFailure(t, c.get(t, host, "/health"), http.StatusMisdirectedRequest, "misdirected")
				wantFailure(t, c.get(t, host, "/sandbox/"+b.ID+"/"+portText(b)+"/"), http.StatusMisdirectedRequest, "misdirected")
				routed := c.request(t, "GET", host, "/", nil)
				routed.Header.Set(headerID, b.ID)
				routed.Header.Set(headerPort, portText(b))
				wantFailure(t, c.do(t, routed), http.StatusMisdirectedRequest, "misdirected")
			}
		})
	}
}

// TestAttack03FrontingInside: who was let through for one sandbox cannot ask for
// another one on the same connection.
func TestAttack03FrontingInside(t *testing.T) {
	w := inside(t)
	one, other := w.serve(sayHello), w.serve(sayHello)
	for _, name := range []string{"h1tls", "h2"} {
		c := w.client(name).openFor(one.host())
		if got := readAll(t, c.get(t, one.host(), "/").Body); got != "hello" {
			t.Errorf("%s: the host of the connection: %q", name, got)
		}
		wantFailure(t, c.get(t, other.host(), "/"), http.StatusMisdirectedRequest, "misdirected")
		// On a connection that has served its own host already.
		req := c.request(t, "GET", one.host(), "/", nil)
		req.Host = other.host()
		wantFailure(t, c.do(t, req), http.StatusMisdirectedRequest, "misdirected")
	}
}

// A private port asks those inside for its token as it asks everybody.
func TestTokenInside(t *testing.T) {
	w := inside(t)
	b := newBox(0)
	b.Public = false
	w.serveOn(b, sayHello)
	for _, c := range w.clients() {
		wantFailure(t, c.get(t, b.host(), "/"), http.StatusForbidden, codeTokenMissing)
	}
}
