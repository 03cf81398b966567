package ingress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestDialPatiently(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	cause := errors.New("the cause")
	for what, x := range map[string]struct {
		dial    func(try int) error
		cancel  time.Duration // when ctx ends, if it does
		want    error
		took    time.Duration
		atLeast int // tries
		atMost  int
	}{
		"at once":           {dial: func(int) error { return nil }, took: 0, atLeast: 1, atMost: 1},
		"always refused":    {dial: func(int) error { return refused }, want: syscall.ECONNREFUSED, took: patience, atLeast: 8, atMost: 20},
		"other error":       {dial: func(int) error { return syscall.EHOSTUNREACH }, want: syscall.EHOSTUNREACH, took: 0, atLeast: 1, atMost: 1},
		"other error later": {dial: func(n int) error { return []error{refused, syscall.EHOSTUNREACH}[n-1] }, want: syscall.EHOSTUNREACH, took: firstPause, atLeast: 2, atMost: 2},
		"third time":        {dial: func(n int) error { return []error{refused, refused, nil}[n-1] }, took: firstPause * 5 / 2, atLeast: 3, atMost: 3},
		"cancelled":         {dial: func(int) error { return refused }, cancel: time.Second, want: cause, took: time.Second, atLeast: 3, atMost: 10},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				if x.cancel > 0 {
					time.AfterFunc(x.cancel, func() { cancel(cause) })
				}
				tries, start, last := 0, time.Now(), time.Duration(0)
				var gap time.Duration
				conn, err := dialPatiently(ctx, func(ctx context.Context) (net.Conn, error) {
					tries++
					now := time.Since(start)
					if now < patience && now-last < gap {
						t.Errorf("pause %d is shorter than the one before", tries)
					}
					gap, last = now-last, now
					if err := x.dial(tries); err != nil {
						return nil, err
					}
					return &net.TCPConn{}, nil
				})
				if !errors.Is(err, x.want) || (conn == nil) != (x.want != nil) {
					t.Errorf("got %v, %v, want %v", conn, err, x.want)
				}
				if took := time.Since(start); took != x.took || tries < x.atLeast || tries > x.atMost {
					t.Errorf("%d tries in %v, want %d to %d in %v", tries, took, x.atLeast, x.atMost, x.took)
				}
			})
		})
	}
}

func TestDialTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := dialPatiently(context.Background(), func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if took := time.Since(start); took != dialTimeout || !isTimeout(err) {
			t.Errorf("got %v after %v", err, took)
		}
		f := (&Ingress{}).explain(err, address{id: someID, port: 80})
		if f.Code != "upstream_timeout" || f.Status != 502 {
			t.Errorf("explained as %+v", f)
		}
	})
}

// The seeds fetch a server that they have just started.
func TestServerStartsLate(t *testing.T) {
	w := newWorld(t)
	b := newBox(0)
	ln := listen(t, netip.AddrPortFrom(b.Addr, 0).String())
	b.port = uint16(ln.Addr().(*net.TCPAddr).Port)
	ln.Close()
	w.boxes.put(b)
	time.AfterFunc(time.Second, func() { w.serveOn(b, tell) })
	c := w.client("h1")
	start := time.Now()
	s := ask(t, c, c.request(t, "POST", b.host(), "/", strings.NewReader("once")))
	if took := time.Since(start); s.Body != "once" || took < time.Second {
		t.Errorf("got %+v after %v", s, took)
	}
}

func TestClosedPort(t *testing.T) {
	w := newWorld(t)
	b := newBox(9)
	w.boxes.put(b)
	c := w.client("h1")
	start := time.Now()
	got := wantFailure(t, c.do(t, c.request(t, "POST", b.host(), "/", strings.NewReader("x"))), 502, "port_closed")
	if took := time.Since(start); took < patience {
		t.Errorf("answered after %v", took)
	}
	if got["message"] != "The sandbox is running but port is not open" || got["port"] != 9.0 || got["sandboxId"] != b.ID {
		t.Errorf("got %v", got)
	}
}

func TestUnreachable(t *testing.T) {
	w := newWorld(t)
	b := newBox(80)
	b.Addr = netip.MustParseAddr("127.255.255.255") // a broadcast address takes no connections
	w.boxes.put(b)
	wantFailure(t, w.client("h1").get(t, b.host(), "/"), 502, "upstream_unreachable")
}

// A client that gives up ends the tries too.
func TestClientLeavesWhileDialling(t *testing.T) {
	w := newWorld(t)
	b := newBox(9)
	w.boxes.put(b)
	c := w.client("h1")
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if resp, err := c.Do(c.request(t, "GET", b.host(), "/", nil).WithContext(ctx)); err == nil {
		t.Errorf("got %d", resp.StatusCode)
	}
	up := w.upstreamOf(t, b)
	eventually(t, "the exchange is over", func() bool {
		up.mu.Lock()
		defer up.mu.Unlock()
		return len(up.parties) == 0
	})
	if took := time.Since(start); took >= patience {
		t.Errorf("went on for %v", took)
	}
}

// A kept connection that the app closes is no reason for an error.
func TestAppClosesIdleConnections(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(buf, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") // promises more, and goes
		buf.Flush()
		conn.Close()
	})
	c := w.client("h1")
	for range 50 {
		if body := readAll(t, c.get(t, b.host(), "/").Body); body != "ok" {
			t.Fatalf("got %q", body)
		}
	}
}
