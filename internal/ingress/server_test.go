package ingress

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener inside a synctest bubble.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	conn, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p pipes) Close() error   { close(p); return nil } // called once, by the server
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func quietIngress(t testing.TB) *Ingress {
	t.Helper()
	in, err := New(Config{Domain: testDomain, Sandboxes: &boxes{}, API: http.NotFoundHandler(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestSlowHeadersAreCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := quietIngress(t).Server()
		ln := make(pipes)
		go srv.Serve(ln)
		defer srv.Close()
		ours, theirs := net.Pipe()
		ln <- theirs
		start := time.Now()
		given := make(chan struct{})
		go func() {
			defer close(given)
			for _, err := io.WriteString(ours, "GET / HTTP/1.1\r\n"); err == nil; _, err = io.WriteString(ours, "X: y\r\n") {
				time.Sleep(time.Second) // of the bubble's time
			}
		}()
		answer, _ := io.ReadAll(ours)
		if took := time.Since(start); took < DefaultHeaderTimeout || took > DefaultHeaderTimeout+time.Second {
			t.Errorf("cut off after %v with %q", took, answer)
		}
		ours.Close()
		<-given
	})
}

func TestIdleConnectionsOutliveBalancers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := quietIngress(t).Server()
		ln := make(pipes)
		go srv.Serve(ln)
		defer srv.Close()
		ours, theirs := net.Pipe()
		ln <- theirs
		start := time.Now()
		go io.WriteString(ours, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if answer, err := io.ReadAll(ours); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 404")) {
			t.Errorf("got %q, %v", answer, err)
		}
		if took := time.Since(start); took < 600*time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestHeaderSize(t *testing.T) {
	w := newWorld(t)
	b := w.serve(tell)
	w.each(t, func(t *testing.T, c client) {
		req := c.request(t, "GET", b.host(), "/", nil)
		req.Header.Set("Cookie", strings.Repeat("x", DefaultMaxHeader/2))
		if s := ask(t, c, req); len(s.Header.Get("Cookie")) != DefaultMaxHeader/2 {
			t.Errorf("%d bytes of cookie arrived", len(s.Header.Get("Cookie")))
		}
		req = c.request(t, "GET", b.host(), "/", nil)
		req.Header.Set("Cookie", strings.Repeat("x", 2*DefaultMaxHeader))
		if resp, err := c.Do(req); err == nil && resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("got %d", resp.StatusCode)
		}
	})
}

func TestServerLog(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil)) // from Info on
	srv := serverLog{log}
	fmt.Fprintln(srv, "http: TLS handshake error from 192.0.2.1:1: EOF")
	if out.Len() != 0 {
		t.Errorf("a stranger fills the log: %s", &out)
	}
	fmt.Fprintln(srv, "http: panic serving 192.0.2.1:1: boom")
	if !strings.Contains(out.String(), "boom") || !strings.Contains(out.String(), "WARN") {
		t.Errorf("logged %q", &out)
	}
}

func TestNew(t *testing.T) {
	good := Config{Domain: testDomain, Sandboxes: &boxes{}, API: http.NotFoundHandler(), Logger: slog.New(slog.DiscardHandler)}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		`domain "x:1"`: func(c *Config) { c.Domain = "x:1" },
		`domain ""`:    func(c *Config) { c.Domain = "" },
		"lookup":       func(c *Config) { c.Sandboxes = nil },
		"logger":       func(c *Config) { c.Logger = nil },
		"-1":           func(c *Config) { c.MaxInFlight = -1 },
	} {
		bad := good
		spoil(&bad)
		if _, err := New(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}
