package ingress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// Attack 37: guessing ids costs the guesser, and nobody else.
func TestAttack37UnknownIDs(t *testing.T) {
	const limit = 5
	w := newWorld(t, func(cfg *Config) { cfg.MaxUnknown = limit })
	b := w.serve(tell)
	unknown := "8080-" + someID + "." + testDomain
	for i := range 2 * limit {
		c := w.clients()[i%4] // one address, however it speaks
		if resp := c.get(t, unknown, "/"); i < limit {
			wantFailure(t, resp, 502, "sandbox_not_found")
		} else {
			wantFailure(t, resp, 429, "too_many_unknown")
			wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
			if err != nil || wait < 1 || wait > 60/limit {
				t.Errorf("told to wait %q", resp.Header.Get("Retry-After"))
			}
		}
	}
	c := w.client("h1")
	wantFailure(t, c.get(t, "localhost", "/sandbox/"+someID+"/80/"), 429, "too_many_unknown")
	if s := ask(t, c, c.request(t, "GET", b.host(), "/", nil)); s.Method != "GET" {
		t.Errorf("the guesser's own sandbox: %+v", s)
	}
	neighbour := httptest.NewRequest("GET", "http://"+unknown+"/", nil)
	neighbour.RemoteAddr = "192.0.2.1:1234"
	rec := httptest.NewRecorder()
	w.in.ServeHTTP(rec, neighbour)
	if rec.Code != 502 {
		t.Errorf("another address was answered %d", rec.Code)
	}
	operator := httptest.NewRequest("GET", "http://"+unknown+"/", nil)
	operator.RemoteAddr = "@"
	for range 2 * limit {
		rec := httptest.NewRecorder()
		if w.in.ServeHTTP(rec, operator); rec.Code != 502 {
			t.Fatalf("the operator was answered %d", rec.Code)
		}
	}
}

func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStrangers(60)
		ask := func(addr string) (time.Duration, bool) { return s.allow(netip.MustParseAddr(addr)) }
		spend := func(addr string, n int) {
			t.Helper()
			for i := range n {
				if wait, ok := ask(addr); !ok {
					t.Fatalf("%s: question %d must wait %v", addr, i, wait)
				}
			}
			if wait, ok := ask(addr); ok || wait <= 0 || wait > time.Second {
				t.Fatalf("%s: one more is answered, or must wait %v", addr, wait)
			}
		}
		spend("192.0.2.1", 60)
		if _, ok := ask("::ffff:192.0.2.1"); ok {
			t.Error("the same address in another notation has an allowance of its own")
		}
		spend("2001:db8::1", 60)
		if _, ok := ask("2001:db8::ffff:1"); ok {
			t.Error("another address of the same /64 has an allowance of its own")
		}
		spend("2001:db8:0:1::1", 60)
		time.Sleep(10 * time.Second) // of the bubble
		spend("192.0.2.1", 10)
		time.Sleep(time.Hour)
		spend("192.0.2.1", 60)
	})
}

// The last connection a client may open works; one more is reset at once, and
// each that ends makes room, whatever became of it.
func TestConnectionLimit(t *testing.T) {
	const limit = 4
	w := newWorld(t, func(cfg *Config) { cfg.MaxConnections = limit })
	b, ws := w.serve(tell), w.serve(echoWebSocket)
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", w.plain)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		return conn
	}
	ask := func(conn net.Conn) (*http.Response, error) {
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", b.host())
		return http.ReadResponse(bufio.NewReader(conn), nil)
	}
	for round := range 3 {
		upgraded := dialWebSocket(t, w.client("h1"), ws)
		encrypted := w.client("h2")
		readAll(t, encrypted.get(t, b.host(), "/").Body)
		conns := []net.Conn{dial(), dial()}
		for _, conn := range conns {
			resp, err := ask(conn)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			io.Copy(io.Discard, resp.Body)
		}
		if n := w.in.Metrics().Connections; n != limit {
			t.Fatalf("round %d: %d connections are counted, want %d", round, n, limit)
		}
		if extra, err := net.Dial("tcp", w.plain); err == nil { // or it is reset already
			if resp, err := ask(extra); err == nil {
				t.Fatalf("round %d: one connection too many was answered %d", round, resp.StatusCode)
			}
			extra.Close()
		}
		if n := w.in.Metrics().ConnectionsRefused; n != uint64(round+1) {
			t.Fatalf("round %d: %d connections are counted as refused", round, n)
		}
		for _, conn := range conns {
			conn.Close()
		}
		upgraded.CloseNow()
		encrypted.CloseIdleConnections()
		eventually(t, "no connection is left", func() bool { return w.in.Metrics().Connections == 0 })
	}
}
