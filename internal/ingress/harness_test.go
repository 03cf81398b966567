package ingress

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

const testDomain = "moat.test"

// lastAddr counts the loopback addresses given to sandboxes.
var lastAddr atomic.Uint32

// box is a sandbox of the tests: an address on the loopback network.
type box struct {
	Target
	port uint16
	once *sync.Once
	done chan struct{}
}

func newBox(port uint16) *box {
	n := lastAddr.Add(1)
	done := make(chan struct{})
	return &box{
		Target: Target{
			ID:     sandbox.NewID(),
			Addr:   netip.AddrFrom4([4]byte{127, 10, byte(n >> 8), byte(n)}),
			Done:   done,
			Public: true,
		},
		port: port,
		once: new(sync.Once),
		done: done,
	}
}

func (b *box) end() { b.once.Do(func() { close(b.done) }) }

func portText(b *box) string { return strconv.Itoa(int(b.port)) }

// overTLS returns the request as if it had come over TLS.
func overTLS(r *http.Request) *http.Request {
	r.TLS = new(tls.ConnectionState)
	return r
}

func (b *box) host() string { return fmt.Sprintf("%d-%s.%s", b.port, b.ID, testDomain) }

// boxes is a Lookup.
type boxes struct {
	mu    sync.Mutex
	known map[string]Target
	asked atomic.Int64
}

func (b *boxes) Sandbox(id string) (Target, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked.Add(1)
	t, ok := b.known[id]
	return t, ok
}

func (b *boxes) put(x *box) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known[x.ID] = x.Target
}

// world is an ingress with its listeners.
type world struct {
	t          testing.TB
	in         *Ingress
	boxes      *boxes
	plain, tls string // addresses of the listeners
	api        atomic.Int32
	log        *syncBuffer
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, boxes: &boxes{known: make(map[string]Target)}, log: new(syncBuffer)}
	cfg := Config{
		Domain:    testDomain,
		Sandboxes: w.boxes,
		API: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.api.Add(1)
			io.WriteString(rw, "api "+r.Host)
		}),
		Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if w.in, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	srv := w.in.Server()
	config := &tls.Config{Certificates: []tls.Certificate{testCertificate(t)}, NextProtos: []string{"h2", "http/1.1"}}
	plain, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	secure, err := ListenTLS("127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	w.plain, w.tls = plain.Addr().String(), secure.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(plain) })
	serving.Go(func() { srv.Serve(secure) })
	t.Cleanup(func() {
		srv.Close()
		w.in.Close()
		serving.Wait()
	})
	return w
}

// serve runs an app in a new sandbox.
func (w *world) serve(app http.HandlerFunc) *box {
	w.t.Helper()
	return w.serveOn(newBox(0), app)
}

// serveOn runs an app on the box's port, or on any when that is 0.
func (w *world) serveOn(b *box, app http.HandlerFunc) *box {
	w.t.Helper()
	ln := listen(w.t, netip.AddrPortFrom(b.Addr, b.port).String())
	b.port = uint16(ln.Addr().(*net.TCPAddr).Port)
	srv := &http.Server{Handler: app, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	go srv.Serve(ln)
	w.t.Cleanup(func() { srv.Close() })
	w.boxes.put(b)
	return b
}

// serveRaw runs a program that owns its connections.
func (w *world) serveRaw(serve func(net.Conn)) *box {
	w.t.Helper()
	b := newBox(0)
	ln := listen(w.t, netip.AddrPortFrom(b.Addr, 0).String())
	b.port = uint16(ln.Addr().(*net.TCPAddr).Port)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	w.boxes.put(b)
	return b
}

func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// client is one way of speaking HTTP to the ingress.
type client struct {
	name, scheme string
	proto        int
	*http.Client
}

// clients returns one client for each protocol the ingress speaks.
func (w *world) clients() []client {
	return []client{w.client("h1"), w.client("h1tls"), w.client("h2"), w.client("h2c")}
}

func (w *world) client(name string) client {
	var p http.Protocols
	c := client{name: name, scheme: "http", proto: 1}
	addr := w.plain
	switch name {
	case "h1":
		p.SetHTTP1(true)
	case "h1tls":
		p.SetHTTP1(true)
		c.scheme, addr = "https", w.tls
	case "h2":
		p.SetHTTP2(true)
		c.scheme, c.proto, addr = "https", 2, w.tls
	case "h2c":
		p.SetUnencryptedHTTP2(true)
		c.proto = 2
	}
	tr := &http.Transport{
		Protocols:          &p,
		DisableCompression: true,
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		},
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	c.Client = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	return c
}

// each runs a test once for every protocol.
func (w *world) each(t *testing.T, test func(t *testing.T, c client)) {
	for _, c := range w.clients() {
		t.Run(c.name, func(t *testing.T) { test(t, c) })
	}
}

func (c client) request(t testing.TB, method, host, path string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, c.scheme+"://"+host+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func (c client) do(t testing.TB, req *http.Request) *http.Response {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.ProtoMajor != c.proto {
		t.Fatalf("answered in %s, want HTTP/%d", resp.Proto, c.proto)
	}
	return resp
}

func (c client) get(t testing.TB, host, path string) *http.Response {
	t.Helper()
	return c.do(t, c.request(t, "GET", host, path, nil))
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// wantFailure checks an answer of our own and returns its JSON.
func wantFailure(t testing.TB, resp *http.Response, status int, code string) map[string]any {
	t.Helper()
	text := readAll(t, resp.Body)
	var got map[string]any
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("answer %d %q is not JSON: %v", resp.StatusCode, text, err)
	}
	if resp.StatusCode != status || got["error_code"] != code || got["code"] != float64(status) {
		t.Fatalf("got %d %s, want %d with error_code %s", resp.StatusCode, text, status, code)
	}
	return got
}

// eventually waits for a condition that something else brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// within fails the test when f takes longer than limit.
func within(t testing.TB, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s: not within %v", what, limit)
	}
}

func isReset(err error) bool {
	return err != nil && strings.Contains(err.Error(), "connection reset by peer")
}

func isCleanEnd(err error) bool {
	return err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF)
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func testCertificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"*." + testDomain}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
