package proxy_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/intercept"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/egress/socket"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// attacker is the address that sandboxes connect to unless a test says
// otherwise. No policy of these tests allows it, and nobody ever dials it.
const attacker = "45.60.70.80"

// apiKey is the secret of team "team". Nothing but requests may show it.
const apiKey = "sk-LIVE-0123456789abcdef"

// secrets are those of teams.
type secrets struct {
	mu    sync.Mutex
	known map[string]string // by team and name
}

func (s *secrets) Secret(team, name string) (secret.String, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.known[team+"/"+name]
	return secret.New(value), ok
}

func (s *secrets) set(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[key] = value
}

// world is a proxy with sandboxes before it and an internet behind it. All of
// it is on the loopback: each sandbox has an address of its own there, the
// kernel's part is played by original, and the dialler's by internet.
type world struct {
	proxy   *proxy.Proxy
	log     *audit.Log
	tenants *tenants
	net     *internet
	secrets *secrets
	root    *intercept.Root
	said    spoken // the proxy's log

	listen80, listen443 *net.TCPListener
	stop                func() // and wait

	mu       sync.Mutex
	original netip.Addr // guarded by mu
}

func newWorld(t testing.TB, limits proxy.Limits) *world {
	t.Helper()
	w := &world{
		tenants:  &tenants{known: make(map[netip.Addr]egress.Tenant)},
		net:      &internet{names: make(map[string]string), at: make(map[string]netip.Addr), fail: make(map[string]error)},
		original: netip.MustParseAddr(attacker),
	}
	w.secrets = &secrets{known: map[string]string{"team/key": apiKey}}
	var err error
	if w.root, err = intercept.OpenRoot(filepath.Join(t.TempDir(), "ca.pem")); err != nil {
		t.Fatal(err)
	}
	authority, err := intercept.New(intercept.Config{Root: w.root})
	if err != nil {
		t.Fatal(err)
	}
	if w.log, err = audit.New(audit.Config{PerSandbox: 100_000, Total: 100_000}); err != nil {
		t.Fatal(err)
	}
	w.proxy, err = proxy.New(proxy.Config{
		Tenants: w.tenants, Dialer: w.net, Audit: w.log, Limits: limits,
		Authority: authority, Roots: testRoots(), Secrets: w.secrets,
		Original: w.destination, Logger: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &w.said), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.listen80, w.listen443 = listen(t), listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.proxy.Serve(ctx, w.listen80, w.listen443) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the proxy does not stop")
		}
	})
	t.Cleanup(func() {
		w.stop()
		w.wantNoSecret(t)
	})
	return w
}

// spoken is a log that is looked at afterwards.
type spoken struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *spoken) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// wantNoSecret expects the secret in no line of the log and in no record, after
// whatever a test has done.
func (w *world) wantNoSecret(t testing.TB) {
	t.Helper()
	w.said.mu.Lock()
	defer w.said.mu.Unlock()
	if strings.Contains(w.said.text.String(), apiKey) {
		t.Error("the log shows the secret")
	}
	records, err := json.Marshal(w.log.Query(audit.Filter{Limit: 1000}).Records)
	if err != nil || strings.Contains(string(records), apiKey) {
		t.Errorf("a record shows the secret, or %v", err)
	}
}

// testRoots trusts the certificate that httptest's servers have, which is for
// example.com.
func testRoots() *x509.CertPool {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := proxy.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// destination plays SO_ORIGINAL_DST.
func (w *world) destination(conn int, _ netip.AddrPort) (netip.AddrPort, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	port := uint16(443)
	local, err := socket.Local(conn)
	if err != nil {
		return local, err
	}
	if local.String() == w.listen80.Addr().String() {
		port = 80
	}
	return netip.AddrPortFrom(w.original, port), nil
}

// tenants knows which sandbox has which address.
type tenants struct {
	mu    sync.Mutex
	known map[netip.Addr]egress.Tenant
}

func (t *tenants) Tenant(src netip.Addr) (egress.Tenant, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.known[src]
	return found, ok
}

func (t *tenants) set(src netip.Addr, tenant egress.Tenant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[src] = tenant
}

func (t *tenants) remove(src netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, src)
}

// box is a sandbox.
type box struct {
	w    *world
	id   string
	addr netip.Addr
	gen  uint64
}

// box makes sandbox number n. Everything is denied but the entries.
func (w *world) box(t testing.TB, n byte, allow ...string) *box {
	t.Helper()
	b := &box{w: w, id: fmt.Sprint("box", n), addr: netip.AddrFrom4([4]byte{127, 0, 1, n})}
	b.publish(t, allow...)
	return b
}

// publish puts a policy in force for new flows.
func (b *box) publish(t testing.TB, allow ...string) egress.Tenant {
	t.Helper()
	return b.publishDocument(t, policy.Document{AllowOut: allow})
}

func (b *box) publishDocument(t testing.TB, doc policy.Document) egress.Tenant {
	t.Helper()
	home, err := policy.NewHome(func(name string) bool { return strings.HasSuffix(name, ".home.test") }, map[uint16]uint16{80: 80, 443: 443})
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse(doc, policy.Options{Rules: true, Home: home})
	if err != nil {
		t.Fatal(err)
	}
	b.gen++
	tenant := egress.Tenant{Sandbox: b.id, Team: "team", Policy: p, Generation: b.gen}
	b.w.tenants.set(b.addr, tenant)
	return tenant
}

// update puts a policy in force for all flows, and returns how many were cut.
func (b *box) update(t testing.TB, allow ...string) int {
	t.Helper()
	return b.w.proxy.Reevaluate(b.id, b.publish(t, allow...))
}

// change is update for a whole document.
func (b *box) change(t testing.TB, doc policy.Document) int {
	t.Helper()
	return b.w.proxy.Reevaluate(b.id, b.publishDocument(t, doc))
}

func (b *box) connect(t testing.TB, ln *net.TCPListener) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: b.addr.AsSlice()}}
	conn, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn), nil
}

func (b *box) dial(t testing.TB, ln *net.TCPListener) *net.TCPConn {
	t.Helper()
	conn, err := b.connect(t, ln)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// wantNoEntry expects that a connection is reset without having said anything.
// That may come before connecting is done.
func (b *box) wantNoEntry(t testing.TB, ln *net.TCPListener) {
	t.Helper()
	conn, err := b.connect(t, ln)
	switch {
	case err == nil:
		wantReset(t, conn)
		conn.Close()
	case !strings.Contains(err.Error(), "reset"):
		t.Errorf("got %v, want a reset", err)
	}
}

// http and tls connect to ports 80 and 443 of wherever.
func (b *box) http(t testing.TB) *net.TCPConn { t.Helper(); return b.dial(t, b.w.listen80) }
func (b *box) tls(t testing.TB) *net.TCPConn  { t.Helper(); return b.dial(t, b.w.listen443) }

// client is an HTTP client in the sandbox.
func (b *box) client(t testing.TB) *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return b.http(t), nil }}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// records returns what the log has about the sandbox, once there are n.
func (b *box) records(t testing.TB, n int) []audit.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	w := b.w.log.Follow(audit.Filter{Sandbox: b.id})
	defer w.Close()
	var all []audit.Record
	for len(all) < n {
		page, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("%d records, want %d: %+v", len(all), n, all)
		}
		all = append(all, page.Records...)
	}
	if len(all) > n {
		t.Fatalf("%d records, want %d: %+v", len(all), n, all)
	}
	return all
}

// internet plays the dialler: names lead to servers on the loopback.
type internet struct {
	mu        sync.Mutex
	connected func()                // called in every dial, when it has succeeded; or nil
	names     map[string]string     // to an address and port
	at        map[string]netip.Addr // what names resolve to, if it matters
	fail      map[string]error
	dials     []string
	ways      []string // the proxies that were to be taken; empty for none
}

func (n *internet) serve(name, addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[name] = addr
}

// Dial implements proxy.Dialer. Names are at the address that remote says, and
// connections through a proxy arrive all the same.
func (n *internet) Dial(ctx context.Context, t egress.Target) (net.Conn, netip.AddrPort, error) {
	way := ""
	if t.Home != 0 {
		way = fmt.Sprintf("home at %d for %v", t.Home, t.Src)
	}
	if t.Through != nil {
		way = netip.AddrPortFrom(t.Through.Addr, t.Through.Port).String()
	}
	n.mu.Lock()
	n.ways = append(n.ways, way)
	n.mu.Unlock()
	if t.Home != 0 {
		conn, err := n.dial(ctx, fmt.Sprintf("%v:%d", t.Name, t.Addr.Port()))
		return conn, netip.AddrPort{}, err
	}
	if t.Name == (policy.Name{}) {
		conn, err := n.dial(ctx, t.Addr.String())
		return conn, t.Addr, err
	}
	n.mu.Lock()
	addr, known := n.at[t.Name.String()]
	n.mu.Unlock()
	if t.Permit != nil && !t.Permit(addr) {
		return nil, netip.AddrPort{}, &egress.NotPermittedError{Name: t.Name.String(), Addr: addr}
	}
	conn, err := n.dial(ctx, fmt.Sprintf("%v:%d", t.Name, t.Addr.Port()))
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	remote := netip.AddrPortFrom(addr, t.Addr.Port())
	if !known {
		remote = conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	}
	return conn, remote, nil
}

func (n *internet) dial(ctx context.Context, target string) (net.Conn, error) {
	n.mu.Lock()
	n.dials = append(n.dials, target)
	addr, ok := n.names[target]
	err := n.fail[target]
	n.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("nobody is at %s", target)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	n.pause()
	return conn, err
}

// Start implements proxy.Dialer, for names that Dial could connect to as well.
func (n *internet) Start(t egress.Target) (begun egress.Attempt, ok bool) {
	begun, ok = n.start(t)
	if ok {
		n.pause()
	}
	return begun, ok
}

func (n *internet) start(t egress.Target) (begun egress.Attempt, ok bool) {
	if t.Home != 0 {
		return begun, false
	}
	target := t.Addr.String()
	if t.Name != (policy.Name{}) {
		target = fmt.Sprintf("%v:%d", t.Name, t.Addr.Port())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	to, err := netip.ParseAddrPort(n.names[target])
	addr, known := n.at[t.Name.String()]
	if err != nil || t.Through != nil || n.fail[target] != nil || t.Permit != nil && !t.Permit(addr) {
		return begun, false
	}
	if begun.FD, err = socket.Connect(to); err != nil {
		return begun, false
	}
	n.dials, n.ways = append(n.dials, target), append(n.ways, "")
	begun.Remote, begun.Patience = to, time.Second
	switch {
	case t.Name == (policy.Name{}):
		begun.Remote = t.Addr
	case known:
		begun.Remote = netip.AddrPortFrom(addr, t.Addr.Port())
	}
	return begun, true
}

// pause is called by every dial that has succeeded.
func (n *internet) pause() {
	n.mu.Lock()
	connected := n.connected
	n.mu.Unlock()
	if connected != nil {
		connected()
	}
}

// through returns the proxies by way of which was dialled.
func (n *internet) through() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.ways)
}

// dialled returns the names and addresses that were dialled.
func (n *internet) dialled() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.dials)
}

// site serves HTTP under a name on port 80.
func (w *world) site(t testing.TB, name string, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	w.net.serve(name+":80", s.Listener.Addr().String())
	return s
}

// secure serves HTTPS under a name on port 443, with a certificate for
// example.com.
func (w *world) secure(t testing.TB, name string, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	w.net.serve(name+":443", s.Listener.Addr().String())
	return s
}

// serve answers connections to a name and port with a function.
func (w *world) serve(t testing.TB, target string, handle func(*net.TCPConn)) {
	ln := listen(t)
	w.net.serve(target, ln.Addr().String())
	go func() {
		for {
			conn, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
}

// discard is a logger for what is not looked at.
var discard = slog.New(slog.DiscardHandler)

// hello answers with the name that it was asked for.
func hello(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello from %s", r.Host) }

// get asks for a path of a host and returns status and body.
func get(t testing.TB, c *http.Client, url string) (int, string) {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// ending is how a connection ended: what came, and the error; nil for a
// regular end.
func ending(t testing.TB, conn net.Conn) (string, error) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	all, err := io.ReadAll(conn)
	return string(all), err
}

// wantReset expects that a connection is reset, at once.
func wantReset(t testing.TB, conn net.Conn) {
	t.Helper()
	if got, err := ending(t, conn); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %q and %v, want a reset", got, err)
	}
}

// eventually waits until something holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}
