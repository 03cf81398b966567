package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// An answer that breaks off must not look complete.
func TestBrokenAnswers(t *testing.T) {
	for what, answer := range map[string]string{
		"length": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhalf",
		"chunks": "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		b := raw(t, answer)
		conn := b.http(t)
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
		if got, err := ending(t, conn); err == nil || strings.HasSuffix(got, "0\r\n\r\n") {
			t.Errorf("%s: %q and %v", what, got, err)
		}
	}
	for what, answer := range map[string]string{
		"no answer": "close", "nonsense": "close nonsense\r\n\r\n", "bad length": "HTTP/1.1 200 OK\r\nContent-Length: x\r\nConnection: close\r\n\r\n",
		"unasked change": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, close\r\nUpgrade: x\r\n\r\n",
	} {
		if got := raw(t, answer).exchange(t, "POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1\r\n\r\nx"); !strings.HasPrefix(got, "HTTP/1.1 502") {
			t.Errorf("%s: %q", what, got)
		}
	}
}

// A client that goes away ends what the server does for it.
func TestClientGoesAway(t *testing.T) {
	gone := make(chan struct{})
	_, b, _ := start(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(gone)
	})
	conn := b.http(t)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
		t.Fatal(err)
	}
	conn.SetLinger(0)
	conn.Close()
	select {
	case <-gone:
	case <-time.After(30 * time.Second):
		t.Error("the server goes on")
	}
	if r := b.records(t, 1)[0]; r.Verdict != policy.Allow || r.Status != 200 {
		t.Errorf("record %+v", r)
	}
}

// A client that has ended its own side still gets its answer.
func TestHalfClosedClient(t *testing.T) {
	_, b, _ := start(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(50 * time.Millisecond)
		hello(w, r)
	})
	if got := b.exchange(t, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"); !strings.HasSuffix(got, "hello from example.com") {
		t.Errorf("%q", got)
	}
}

// An answer that comes before the whole request ends the exchange.
func TestEarlyAnswer(t *testing.T) {
	_, b, _ := start(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) })
	conn := b.http(t)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1000000000\r\n\r\nbegin")
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || r.StatusCode != 401 {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := ending(t, conn); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	if r := b.records(t, 1)[0]; r.Status != 401 {
		t.Errorf("record %+v", r)
	}
}

// timeout is an error of the dialler.
type timeout struct{}

func (timeout) Error() string { return "10.0.0.1: i/o timeout" }

func (timeout) Timeout() bool { return true }

// reasoned is an error that says what sandboxes may know.
type reasoned struct{ error }

func (reasoned) Reason() string { return "example.com refuses connections" }

// Attacks 15 and 16: the name is allowed, where it leads is not. Other failures
// are told apart from refusals, without the node's own addresses.
func TestAttack15FailedDials(t *testing.T) {
	forbidden := &egress.ForbiddenError{Addr: netip.MustParseAddr("169.254.169.254"), Why: "cloud metadata"}
	for what, x := range map[string]struct {
		err     error
		status  string
		verdict policy.Verdict
		reason  string
	}{
		"forbidden":   {fmt.Errorf("dial: %w", forbidden), "403", policy.Deny, "169.254.169.254 is never reachable: cloud metadata"},
		"refused":     {reasoned{errors.New("connect 10.0.0.1")}, "502", policy.Allow, "example.com refuses connections"},
		"times out":   {timeout{}, "504", policy.Allow, "the destination cannot be connected to"},
		"unspecified": {errors.New("10.0.0.1 has no route"), "502", policy.Allow, "the destination cannot be connected to"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, proxy.Limits{})
			w.net.fail["example.com:80"], w.net.fail["example.com:443"] = x.err, x.err
			b := w.box(t, 1, "example.com")
			got := b.exchange(t, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
			if !strings.HasPrefix(got, "HTTP/1.1 "+x.status) || !strings.Contains(got, x.reason) || strings.Contains(got, "10.0.0.1") {
				t.Errorf("%q", got)
			}
			conn := b.tls(t)
			conn.Write(clientHello("example.com"))
			if x.verdict == policy.Deny {
				wantAccessDenied(t, conn, what)
			} else {
				wantReset(t, conn)
			}
			for _, r := range b.records(t, 2) {
				if r.Verdict != x.verdict || r.Reason != x.reason || r.Name != "example.com" {
					t.Errorf("record %+v", r)
				}
			}
		})
	}
}

// Attack 17: a redirect is the client's to follow.
func TestAttack17Redirect(t *testing.T) {
	w, _, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data/", http.StatusFound)
	})
	answer, err := c.Get("http://example.com/")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != 302 || answer.Header.Get("Location") != "http://169.254.169.254/latest/meta-data/" {
		t.Errorf("%+v", answer)
	}
	if status, _ := get(t, c, "http://169.254.169.254/latest/meta-data/"); status != 403 {
		t.Errorf("following it gives %d", status)
	}
	wantDials(t, w, "example.com:80")
}

// A server that closes an idle connection is connected to anew.
func TestServerClosesIdleConnection(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	closed := make(chan struct{})
	w.serve(t, "example.com:80", func(conn *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		conn.CloseWrite()
		io.Copy(io.Discard, conn) // until the proxy has closed it, too
		closed <- struct{}{}
	})
	b := w.box(t, 1, "example.com")
	conn := b.http(t)
	in := bufio.NewReader(conn)
	for range 3 {
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1\r\n\r\nx")
		if r, err := http.ReadResponse(in, nil); err != nil || r.StatusCode != 200 {
			t.Fatalf("%v, %v", r, err)
		}
		<-closed
	}
	wantDials(t, w, "example.com:80", "example.com:80", "example.com:80")
}

func TestNewRefusesNonsense(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	whole := func() proxy.Config {
		return proxy.Config{Tenants: w.tenants, Dialer: w.net, Audit: w.log, Logger: discard}
	}
	for what, change := range map[string]func(*proxy.Config){
		"no tenants": func(c *proxy.Config) { c.Tenants = nil }, "no dialler": func(c *proxy.Config) { c.Dialer = nil },
		"no sink": func(c *proxy.Config) { c.Audit = nil }, "no logger": func(c *proxy.Config) { c.Logger = nil },
		"negative": func(c *proxy.Config) { c.Limits.Peek = -1 },
	} {
		cfg := whole()
		change(&cfg)
		if p, err := proxy.New(cfg); err == nil || p != nil {
			t.Errorf("%s: %v, %v", what, p, err)
		}
	}
	if _, err := proxy.New(whole()); err != nil {
		t.Error(err)
	}
	if ln, err := proxy.Listen(context.Background(), netip.MustParseAddrPort("203.0.113.1:80")); err == nil {
		ln.Close()
		t.Error("listens on an address that the node does not have")
	}
}
