package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestServerSentEvents(t *testing.T) {
	w := newWorld(t)
	for what, header := range map[string]string{
		"events":        "text/event-stream",
		"chunked":       "text/plain",
		"length known":  "length",
		"headers alone": "headers",
	} {
		next := make(chan struct{})
		b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
			switch header {
			case "length":
				rw.Header().Set("Content-Length", "24")
			default:
				rw.Header().Set("Content-Type", header)
			}
			if header == "headers" {
				rw.(http.Flusher).Flush()
				<-next
			}
			for i := range 3 {
				fmt.Fprintf(rw, "data: %d\n", i)
				if i < 2 {
					rw.(http.Flusher).Flush()
					<-next // until the client has seen it
				}
			}
		})
		w.each(t, func(t *testing.T, c client) {
			within(t, 30*time.Second, what, func() {
				resp := c.get(t, b.host(), "/")
				if header == "headers" {
					next <- struct{}{}
				}
				lines := bufio.NewReader(resp.Body)
				for i := range 3 {
					line, err := lines.ReadString('\n')
					if err != nil || line != fmt.Sprintf("data: %d\n", i) {
						t.Errorf("%s: line %d: %q, %v", what, i, line, err)
					}
					if i < 2 {
						next <- struct{}{}
					}
				}
			})
		})
	}
}

// Both directions of one exchange flow at the same time.
func TestFullDuplex(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).EnableFullDuplex()
		buf := make([]byte, 64)
		for {
			n, err := r.Body.Read(buf)
			rw.Write(bytes.ToUpper(buf[:n]))
			rw.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	w.each(t, func(t *testing.T, c client) {
		within(t, 30*time.Second, "echo", func() {
			in, out := io.Pipe()
			req := c.request(t, "POST", b.host(), "/", in)
			go io.WriteString(out, "ping 0\n")
			resp := c.do(t, req)
			lines := bufio.NewReader(resp.Body)
			for i := range 5 {
				line, err := lines.ReadString('\n')
				if err != nil || line != fmt.Sprintf("PING %d\n", i) {
					t.Errorf("got %q, %v", line, err)
				}
				if i < 4 {
					fmt.Fprintf(out, "ping %d\n", i+1)
				}
			}
			out.Close()
			if rest := readAll(t, lines); rest != "" {
				t.Errorf("got %q at the end", rest)
			}
		})
	})
}

// An app that answers without wanting the body ends the exchange; a client
// that sends it all before reading is not stuck.
func TestEarlyAnswer(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		http.Error(rw, "too large", http.StatusRequestEntityTooLarge)
	})
	w.each(t, func(t *testing.T, c client) {
		within(t, 20*time.Second, "answer", func() {
			resp := c.do(t, c.request(t, "POST", b.host(), "/", io.LimitReader(zeros{}, 64<<20)))
			if body := readAll(t, resp.Body); resp.StatusCode != 413 || body != "too large\n" {
				t.Errorf("got %d %q", resp.StatusCode, body)
			}
		})
	})
}

// An early answer reaches a client that goes on sending, before it pauses.
func TestEarlyAnswerIsNotHeldBack(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(http.StatusNoContent) })
	conn, err := net.Dial("tcp", w.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\n\r\n", b.host())
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusNoContent {
			t.Errorf("got %v, %v", resp, err)
		}
	}()
	tick := time.NewTicker(lingerPause / 5)
	defer tick.Stop()
	for end := time.After(lingerTime / 2); ; {
		select {
		case <-answered:
			return
		case <-end:
			t.Fatal("no answer while the client sends")
		case <-tick.C:
			io.WriteString(conn, "x")
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// random gives n unpredictable bytes and their sum once they are read.
func random(n int64) (io.Reader, hash.Hash) {
	sum := sha256.New()
	return io.TeeReader(io.LimitReader(rand.Reader, n), sum), sum
}

// 50 MB up and down at the same time do not pass through memory.
func TestLargeBodies(t *testing.T) {
	const size = 50 << 20
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).EnableFullDuplex()
		io.Copy(rw, r.Body)
	})
	w.each(t, func(t *testing.T, c client) {
		body, sent := random(size)
		stop := make(chan struct{})
		peak := make(chan uint64)
		before := heapInUse()
		go func() { peak <- peakHeap(stop) }()
		resp := c.do(t, c.request(t, "POST", b.host(), "/", body))
		got := sha256.New()
		n, err := io.Copy(got, resp.Body)
		close(stop)
		if err != nil || n != size || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
			t.Errorf("got %d bytes back, %v", n, err)
		}
		// The client and the app are in this heap too.
		if most := <-peak; most > before+32<<20 {
			t.Errorf("heap grew from %d to %d MB", before>>20, most>>20)
		}
	})
}

// heapInUse is the heap when what earlier tests left is collected.
func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

func peakHeap(stop <-chan struct{}) (most uint64) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return most
		case <-tick.C:
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
		}
	}
}

func echoWebSocket(rw http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(rw, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}, InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(4 << 20)
	for {
		kind, data, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if string(data) == "bye" {
			conn.Close(4001, "as you wish")
			return
		}
		if err := conn.Write(r.Context(), kind, data); err != nil {
			return
		}
	}
}

func dialWebSocket(t *testing.T, c client, b *box) *websocket.Conn {
	t.Helper()
	conn, resp, err := websocket.Dial(context.Background(), c.scheme+"://"+b.host()+"/ws", &websocket.DialOptions{
		HTTPClient: c.Client, Subprotocols: []string{"echo"},
		HTTPHeader: http.Header{"Origin": {"https://elsewhere.example"}},
	})
	if err != nil {
		t.Fatalf("%v (%v)", err, resp)
	}
	t.Cleanup(func() { conn.CloseNow() })
	conn.SetReadLimit(4 << 20)
	return conn
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	b := w.serve(echoWebSocket)
	for _, name := range []string{"h1", "h1tls"} {
		t.Run(name, func(t *testing.T) {
			conn := dialWebSocket(t, w.client(name), b)
			if conn.Subprotocol() != "echo" {
				t.Errorf("subprotocol %q", conn.Subprotocol())
			}
			ctx := context.Background()
			for _, n := range []int{0, 1, 125, 126, 65536, 3 << 20} {
				data := bytes.Repeat([]byte{'x'}, n)
				if err := conn.Write(ctx, websocket.MessageBinary, data); err != nil {
					t.Fatal(err)
				}
				if _, got, err := conn.Read(ctx); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%d bytes: got %d back, %v", n, len(got), err)
				}
			}
			if err := conn.Write(ctx, websocket.MessageText, []byte("bye")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != 4001 {
				t.Errorf("closed with %v", err)
			}
		})
	}
}

func TestWebSocketRefused(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) { http.Error(rw, "no", http.StatusTeapot) })
	c := w.client("h1")
	_, resp, err := websocket.Dial(context.Background(), "http://"+b.host()+"/", &websocket.DialOptions{HTTPClient: c.Client})
	if err == nil || resp.StatusCode != http.StatusTeapot {
		t.Errorf("got %v, %v", resp, err)
	}
}

// An upgrade to any other protocol is a plain tunnel: early bytes arrive, and
// each side can end its direction alone.
func TestUpgradeTunnel(t *testing.T) {
	w := newWorld(t)
	b := w.serveRaw(func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\nhello ")
		said, _ := io.ReadAll(in) // until the client ends its direction
		conn.Write(bytes.ToUpper(said))
	})
	conn, err := net.Dial("tcp", w.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\nearly ", b.host())
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("got %v, %v", resp, err)
	}
	io.WriteString(conn, "late")
	conn.(*net.TCPConn).CloseWrite()
	within(t, 30*time.Second, "the rest", func() {
		if got := readAll(t, in); got != "hello EARLY LATE" {
			t.Errorf("got %q", got)
		}
	})
}

// Attack 38: an upgrade to HTTP/2 would carry requests past every check.
func TestAttack38UpgradeToHTTP2(t *testing.T) {
	w := newWorld(t)
	guest := newBox(49983)
	w.serveOn(guest, tell)
	app := w.serve(tell)
	c := w.client("h1")
	for _, x := range []struct {
		b        *box
		upgrade  string
		wantSeen bool
	}{
		{app, "h2c", false}, {app, "H2C", false}, {app, "websocket, h2c", false}, {app, "HTTP/2.0", false},
		{app, "websocket", true}, {app, "chat/1.0", true},
		{guest, "websocket", false}, {guest, "h2c", false},
	} {
		req := c.request(t, "GET", x.b.host(), "/", nil)
		req.Header.Set("Connection", "Upgrade, HTTP2-Settings")
		req.Header.Set("Upgrade", x.upgrade)
		req.Header.Set("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA")
		s := ask(t, c, req)
		if got := s.Header.Get("Upgrade") != ""; got != x.wantSeen || s.Header.Get("Http2-Settings") != "" {
			t.Errorf("%s on port %d: app saw %v", x.upgrade, x.b.port, s.Header)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s %s", r.URL.Path, body)
	})
	w.each(t, func(t *testing.T, c client) {
		var all sync.WaitGroup
		for i := range 40 {
			all.Go(func() {
				for j := range 10 {
					path, body := fmt.Sprintf("/%d/%d", i, j), strings.Repeat("b", i*j)
					resp, err := c.Post(c.scheme+"://"+b.host()+path, "text/plain", strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || string(got) != path+" "+body {
						t.Errorf("%s: got %.400q, %v", path, got, err)
					}
				}
			})
		}
		all.Wait()
	})
}
