package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// drip writes for as long as anybody listens.
func drip(rw http.ResponseWriter, r *http.Request) {
	for {
		if _, err := io.WriteString(rw, "drip\n"); err != nil {
			return
		}
		rw.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (w *world) ended(b *box) {
	w.boxes.mu.Lock()
	delete(w.boxes.known, b.ID)
	w.boxes.mu.Unlock()
	b.end()
}

func TestEndBreaksAnswersOff(t *testing.T) {
	w := newWorld(t)
	w.each(t, func(t *testing.T, c client) {
		b, bystander := w.serve(drip), w.serve(drip)
		resp, other := c.get(t, b.host(), "/"), c.get(t, bystander.host(), "/")
		lines, others := bufio.NewReader(resp.Body), bufio.NewReader(other.Body)
		for _, r := range []*bufio.Reader{lines, others} {
			if _, err := r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		w.ended(b)
		within(t, 30*time.Second, "the end", func() {
			if _, err := io.Copy(io.Discard, lines); isCleanEnd(err) {
				t.Error("the broken answer looks complete")
			}
		})
		wantFailure(t, c.get(t, b.host(), "/"), 502, "sandbox_not_found")
		for range 3 { // not from the buffer alone
			others.Discard(others.Buffered())
			if _, err := others.ReadString('\n'); err != nil {
				t.Fatalf("a neighbour's answer broke: %v", err)
			}
		}
	})
}

// Over HTTP/1.0 only a reset tells a broken answer from a complete one.
func TestEndResetsHTTP10(t *testing.T) {
	w := newWorld(t)
	b := w.serve(drip)
	conn, err := net.Dial("tcp", w.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", b.host())
	in := bufio.NewReader(conn)
	for line := ""; line != "drip\n"; {
		if line, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	w.ended(b)
	within(t, 30*time.Second, "the end", func() {
		if _, err := io.Copy(io.Discard, in); !isReset(err) {
			t.Errorf("got %v, want a reset", err)
		}
	})
}

func TestEndResetsWebSockets(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"h1", "h1tls"} {
		t.Run(name, func(t *testing.T) {
			b := w.serve(echoWebSocket)
			conn := dialWebSocket(t, w.client(name), b)
			ctx := context.Background()
			if err := conn.Write(ctx, websocket.MessageText, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.Read(ctx); err != nil {
				t.Fatal(err)
			}
			w.ended(b)
			within(t, 30*time.Second, "the end", func() {
				if _, _, err := conn.Read(ctx); !isReset(err) {
					t.Errorf("got %v, want a reset", err)
				}
			})
		})
	}
}

// A client that has stopped reading does not keep anything alive.
func TestEndFreesStalledClients(t *testing.T) {
	w := newWorld(t)
	w.each(t, func(t *testing.T, c client) {
		var sent atomic.Int64
		b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
			chunk := make([]byte, 64<<10)
			for n, err := rw.Write(chunk); err == nil; n, err = rw.Write(chunk) {
				sent.Add(int64(n))
			}
		})
		c.get(t, b.host(), "/") // and read nothing
		before := int64(-1)
		eventually(t, "everything is full", func() bool {
			now := sent.Load()
			full := now > 0 && now == before
			before = now
			time.Sleep(100 * time.Millisecond)
			return full
		})
		up := w.upstreamOf(t, b)
		w.ended(b)
		eventually(t, "the exchange is over", func() bool {
			up.mu.Lock()
			defer up.mu.Unlock()
			return len(up.parties) == 0
		})
	})
}

// A connection that comes about while its sandbox ends is not kept.
func TestLateConnection(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	up := newUpstream(Target{Addr: netip.IPv6Loopback()})
	up.end()
	if conn, err := up.adopt(near.(*net.TCPConn), 80); !errors.Is(err, errEnded) {
		t.Errorf("got %v, %v", conn, err)
	}
	if _, err := far.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("the other side got %v", err)
	}
}

func (w *world) upstreamOf(t *testing.T, b *box) *upstream {
	t.Helper()
	w.in.mu.Lock()
	defer w.in.mu.Unlock()
	up := w.in.upstreams[b.Done]
	if up == nil {
		t.Fatal("no upstream")
	}
	return up
}

// Before an answer has begun there is still a way to say what happened.
func TestEndBeforeAnswer(t *testing.T) {
	w := newWorld(t)
	w.each(t, func(t *testing.T, c client) {
		entered := make(chan struct{}, 1)
		silent := w.serve(func(rw http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			<-r.Context().Done()
		})
		closed := newBox(1)
		w.boxes.put(closed)
		for what, b := range map[string]*box{"waiting for an answer": silent, "dialling": closed} {
			go func() {
				if b == silent {
					<-entered
				} else {
					eventually(t, "a request", func() bool { w.in.mu.Lock(); defer w.in.mu.Unlock(); return w.in.upstreams[b.Done] != nil })
				}
				w.ended(b)
			}()
			start := time.Now()
			wantFailure(t, c.get(t, b.host(), "/"), 502, "sandbox_not_found")
			if took := time.Since(start); took >= patience {
				t.Errorf("%s: answered after %v", what, took)
			}
		}
	})
}

// Attack 31: nothing of one life is left for the next tenant of the address.
func TestEndClosesIdleConnections(t *testing.T) {
	w := newWorld(t)
	closed := make(chan error, 1)
	b := w.serveRaw(func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		_, err := in.ReadByte()
		closed <- err
	})
	c := w.client("h1")
	readAll(t, c.get(t, b.host(), "/").Body)
	up := w.upstreamOf(t, b)
	b.end()
	if err := <-closed; !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
	eventually(t, "the upstream is forgotten", func() bool {
		w.in.mu.Lock()
		defer w.in.mu.Unlock()
		return w.in.upstreams[b.Done] == nil
	})
	if _, err := up.dial(context.Background(), "tcp", "127.0.0.1:80"); !errors.Is(err, errEnded) {
		t.Errorf("an ended upstream dials: %v", err)
	}
	// The lookup may still know it for a moment.
	wantFailure(t, c.get(t, b.host(), "/"), 502, "sandbox_not_found")

	next := *b
	fresh := newBox(b.port)
	next.ID, next.Done = b.ID, fresh.Done
	w.boxes.put(&next)
	if body := readAll(t, c.get(t, b.host(), "/").Body); body != "ok" {
		t.Errorf("the next life answers %q", body)
	}
	fresh.end()
	<-closed
}

// An app that dies in the middle is not passed off as complete either.
func TestAppBreaksOff(t *testing.T) {
	w := newWorld(t)
	b := w.serveRaw(func(conn net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		switch r.URL.Path {
		case "/length":
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		case "/chunks":
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		case "/reset":
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nhalf")
			time.Sleep(20 * time.Millisecond) // a reset overtakes data
			conn.(*net.TCPConn).SetLinger(0)
		}
	})
	w.each(t, func(t *testing.T, c client) {
		for _, path := range []string{"/length", "/chunks", "/reset"} {
			resp, err := c.Do(c.request(t, "GET", b.host(), path, nil))
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if got, err := io.ReadAll(resp.Body); isCleanEnd(err) {
				t.Errorf("%s: %q looks complete", path, got)
			}
			resp.Body.Close()
		}
	})
}

// When the client goes, the app is told.
func TestClientLeaves(t *testing.T) {
	w := newWorld(t)
	w.each(t, func(t *testing.T, c client) {
		entered, left := make(chan struct{}), make(chan struct{})
		b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
			close(entered)
			<-r.Context().Done()
			close(left)
		})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-entered
			cancel()
		}()
		if _, err := c.Do(c.request(t, "GET", b.host(), "/", nil).WithContext(ctx)); err == nil {
			t.Error("got an answer")
		}
		within(t, 30*time.Second, "the app hears of it", func() { <-left })
	})
}

func TestCloseLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("world", func(t *testing.T) {
		w := newWorld(t)
		b := w.serve(drip)
		c := w.client("h1")
		resp := c.get(t, b.host(), "/")
		ws := dialWebSocket(t, c, w.serve(echoWebSocket))
		w.in.Close()
		if _, err := io.Copy(io.Discard, resp.Body); isCleanEnd(err) {
			t.Error("the broken answer looks complete")
		}
		if _, _, err := ws.Read(context.Background()); !isReset(err) {
			t.Errorf("web socket: got %v", err)
		}
		wantFailure(t, c.get(t, b.host(), "/"), 503, "server_stopping")
		if len(w.in.upstreams) != 0 {
			t.Error("upstreams are left")
		}
		if err := w.in.Close(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}

// Sandboxes that come and go under load: every answer is either complete and
// right, or broken off, or says that the sandbox is gone.
func TestChurn(t *testing.T) {
	w := newWorld(t)
	c := w.client("h1")
	stable := w.serve(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, strings.Repeat("s", 10000)) })
	stop := make(chan struct{})
	churned := make(chan struct{})
	go func() {
		defer close(churned)
		for range 30 {
			b := w.serve(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, strings.Repeat("c", 10000)) })
			for range 5 {
				resp, err := c.Get("http://" + b.host() + "/")
				if err != nil {
					t.Error(err)
					break
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			w.ended(b)
		}
		close(stop)
	}()
	for n := 0; ; n++ {
		select {
		case <-stop:
			<-churned
			if n == 0 {
				t.Error("nothing was asked meanwhile")
			}
			return
		default:
		}
		if body := readAll(t, c.get(t, stable.host(), "/").Body); body != strings.Repeat("s", 10000) {
			t.Fatalf("got %d bytes %.10s", len(body), body)
		}
	}
}
