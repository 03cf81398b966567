package ingress

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
)

// BenchmarkRequest sends small requests one after another, through the ingress
// and, for comparison, straight to the app.
func BenchmarkRequest(b *testing.B) {
	w := newWorld(b, func(cfg *Config) { cfg.Logger = slog.New(slog.DiscardHandler) })
	app := w.serve(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "hello") })
	run := func(b *testing.B, url string, c *http.Client) {
		b.ReportAllocs()
		for b.Loop() {
			resp, err := c.Get(url)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	direct := "http://" + net.JoinHostPort(app.Addr.String(), strconv.Itoa(int(app.port))) + "/"
	b.Run("direct", func(b *testing.B) { run(b, direct, http.DefaultClient) })
	for _, c := range w.clients() {
		b.Run(c.name, func(b *testing.B) { run(b, c.scheme+"://"+app.host()+"/", c.Client) })
	}
}

// BenchmarkPlain sends the plainest of requests over one connection, and over
// one each, by a client and to an app that make no garbage of their own.
func BenchmarkPlain(b *testing.B) {
	const (
		answer  = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
		chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
	)
	w := newWorld(b, func(cfg *Config) { cfg.Logger = slog.New(slog.DiscardHandler) })
	app := w.servePrivate(nil)
	app.Addr = netip.MustParseAddr("127.0.0.1")
	w.boxes.put(app)
	requestOf := func(answer string) []byte {
		app.port = rawApp(b, answer)
		return []byte("GET / HTTP/1.1\r\nHost: " + app.host() + "\r\n" + headerE2BToken + ": " + app.Token.Reveal() + "\r\n\r\n")
	}
	ask := func(b *testing.B, conn net.Conn, request, buf []byte) {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, buf); err != nil || !bytes.Contains(buf, []byte("hello")) {
			b.Fatal(string(buf), err)
		}
	}
	dial := func(b *testing.B) net.Conn {
		conn, err := net.Dial("tcp", w.plain)
		if err != nil {
			b.Fatal(err)
		}
		return conn
	}
	for name, answer := range map[string]string{"kept": answer, "kept, chunked": chunked} {
		request, buf := requestOf(answer), make([]byte, len(answer))
		b.Run(name, func(b *testing.B) {
			conn := dial(b)
			defer conn.Close()
			b.ReportAllocs()
			for b.Loop() {
				ask(b, conn, request, buf)
			}
		})
	}
	b.Run("new", func(b *testing.B) {
		request, buf := requestOf(answer), make([]byte, len(answer))
		b.ReportAllocs()
		for b.Loop() {
			conn := dial(b)
			ask(b, conn, request, buf)
			conn.Close()
		}
	})
}

// rawApp answers whatever is sent to it, on any number of connections.
func rawApp(b *testing.B, answer string) (port uint16) {
	l := listen(b, "127.0.0.1:0")
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for buf, out := make([]byte, 4096), []byte(answer); ; {
					if _, err := conn.Read(buf); err != nil {
						return
					}
					if _, err := conn.Write(out); err != nil {
						return
					}
				}
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// BenchmarkUnknown is what a stranger's guess costs, with few and with many
// sandboxes known.
func BenchmarkUnknown(b *testing.B) {
	for _, known := range []int{10, 100_000} {
		b.Run(strconv.Itoa(known), func(b *testing.B) {
			in := quietIngress(b)
			all := &boxes{known: make(map[string]Target)}
			for range known {
				id := sandbox.NewID()
				all.known[id] = Target{ID: id, Addr: netip.IPv6Loopback(), Done: make(chan struct{})}
			}
			in.sandboxes = all
			r, err := http.NewRequest("GET", "http://8080-"+someID+"."+testDomain+"/", strings.NewReader(""))
			if err != nil {
				b.Fatal(err)
			}
			w := &nowhere{header: make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				in.ServeHTTP(w, r)
			}
			if w.status != http.StatusBadGateway {
				b.Errorf("got %d", w.status)
			}
		})
	}
}

// BenchmarkAdmit is what routing by Host and the check of a token cost together,
// with few and with many sandboxes known.
func BenchmarkAdmit(b *testing.B) {
	for _, known := range []int{10, 100_000} {
		b.Run(strconv.Itoa(known), func(b *testing.B) {
			in := quietIngress(b)
			all := &boxes{known: make(map[string]Target)}
			var hosts []string
			for range known {
				t := Target{ID: sandbox.NewID(), Addr: netip.IPv6Loopback(), Done: make(chan struct{}), Token: secret.New(strings.Repeat("0123456789abcdef", 4))}
				all.known[t.ID] = t
				hosts = append(hosts, "8080-"+t.ID+"."+testDomain)
			}
			in.sandboxes = all
			r, err := http.NewRequest("GET", "http://x/", nil)
			if err != nil {
				b.Fatal(err)
			}
			r.Header.Set(headerE2BToken, strings.Repeat("0123456789abcdef", 4))
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				r.Host = hosts[n*7919%len(hosts)]
				rt, fail := in.locate(r)
				if fail != nil {
					b.Fatal(fail)
				}
				target, ok := in.sandboxes.Sandbox(rt.id)
				if _, fail := target.admit(rt, r, time.Time{}); fail != nil || !ok {
					b.Fatal(fail)
				}
			}
		})
	}
}

type nowhere struct {
	header http.Header
	status int
}

func (w *nowhere) Header() http.Header         { return w.header }
func (w *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (w *nowhere) WriteHeader(status int)      { w.status = status }

func BenchmarkParseHost(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if kind, _, err := parseHost("8080-"+someID+".moat.test:443", testDomain); kind != sandboxHost || err != nil {
			b.Fatal(kind, err)
		}
	}
}
