package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
)

// dialFunc connects to a server, through the proxy or not.
type dialFunc func(testing.TB) net.Conn

// dialer connects from the sandbox's address, with any free port: to bind one
// takes one that is free for all destinations.
func (b *box) dialer() *net.Dialer {
	return &net.Dialer{
		LocalAddr: &net.TCPAddr{IP: b.addr.AsSlice()},
		Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
			})
		},
	}
}

// compare runs a benchmark over plain TCP and through the proxy, to the same
// server.
func compare(b *testing.B, handle func(*net.TCPConn), run func(b *testing.B, dial dialFunc)) {
	w := newWorld(b, proxy.Limits{Connections: 1 << 20, Undecided: 1 << 20})
	w.serve(b, "example.com:443", handle)
	box := w.box(b, 1, "example.com")
	server := w.net.names["example.com:443"]
	for name, addr := range map[string]string{"plain": server, "proxy": w.listen443.Addr().String()} {
		b.Run(name, func(b *testing.B) {
			run(b, func(t testing.TB) net.Conn {
				conn, err := box.dialer().DialContext(context.Background(), "tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				return conn
			})
		})
	}
}

// BenchmarkConnections opens a connection, names the server, and waits for its
// answer and end.
func BenchmarkConnections(b *testing.B) {
	text := clientHello("example.com")
	compare(b, func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, len(text)))
		conn.Write([]byte("x"))
	}, func(b *testing.B, dial dialFunc) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				conn := dial(b)
				conn.Write(text)
				if answer, err := io.ReadAll(conn); string(answer) != "x" {
					b.Fatalf("%q, %v", answer, err)
				}
				conn.Close()
			}
		})
	})
}

// BenchmarkDownload receives as much as it can over one connection.
func BenchmarkDownload(b *testing.B) {
	const size = 1 << 20
	text := clientHello("example.com")
	page := make([]byte, size)
	compare(b, func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, len(text)))
		for {
			if _, err := conn.Write(page); err != nil {
				return
			}
		}
	}, func(b *testing.B, dial dialFunc) {
		conn := dial(b)
		defer conn.Close()
		conn.Write(text)
		buf := make([]byte, size)
		b.SetBytes(size)
		for b.Loop() {
			if _, err := io.ReadFull(conn, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRequests asks over connections that stay open.
func BenchmarkRequests(b *testing.B) {
	w, box, _ := start(b, hello)
	direct := httptest.NewServer(http.HandlerFunc(hello))
	b.Cleanup(direct.Close)
	for name, addr := range map[string]string{"plain": direct.Listener.Addr().String(), "proxy": w.listen80.Addr().String()} {
		b.Run(name, func(b *testing.B) {
			tr := &http.Transport{MaxIdleConnsPerHost: 100, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return box.dialer().DialContext(ctx, "tcp", addr)
			}}
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if status, body := get(b, c, "http://example.com/"); status != 200 {
						b.Error(status, body)
					}
				}
			})
		})
	}
}

// BenchmarkRefusals opens connections that are refused by name.
func BenchmarkRefusals(b *testing.B) {
	w := newWorld(b, proxy.Limits{})
	box := w.box(b, 1, "example.com")
	text := clientHello("evil.example")
	for b.Loop() {
		conn, err := box.dialer().Dial("tcp", w.listen443.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		conn.Write(text)
		wantAccessDenied(b, conn, "evil.example")
		conn.Close()
	}
}

// BenchmarkIntercepted asks over connections of TLS that stay open, and has a
// header set in each request.
func BenchmarkIntercepted(b *testing.B) {
	w := newWorld(b, proxy.Limits{})
	server := w.secure2(b, "example.com", hello)
	box := w.box(b, 1)
	box.change(b, withKey("example.com"))
	for _, version := range []int{1, 2} {
		direct := box.https(b, version)
		tr := direct.Transport.(*http.Transport)
		tr.TLSClientConfig.RootCAs = testRoots()
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
		}
		for name, c := range map[string]*http.Client{"plain": direct, "proxy": box.https(b, version)} {
			c.Transport.(*http.Transport).MaxIdleConnsPerHost = 100
			b.Run(fmt.Sprintf("http%d/%s", version, name), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if status, body := get(b, c, "https://example.com/"); status != 200 {
							b.Error(status, body)
						}
					}
				})
			})
		}
	}
}
