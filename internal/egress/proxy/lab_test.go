package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
)

// The addresses of the sandbox in the laboratory.
var (
	boxIP4 = netip.MustParseAddr("10.99.0.2")
	boxIP6 = netip.MustParseAddr("fd99::2")
)

// labWorld is a proxy on the laboratory's node. The kernel sends it what comes
// from the sandbox's addresses, and the proxy dials into the fake internet.
type labWorld struct {
	*lab.Lab
	proxy   *proxy.Proxy
	log     *audit.Log
	tenants *tenants
	ca      string // file with the laboratory's CA
}

func newLabWorld(t *testing.T, allow ...string) *labWorld {
	t.Helper()
	l, err := lab.New(t.Context(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	w := &labWorld{Lab: l, tenants: &tenants{known: make(map[netip.Addr]egress.Tenant)}, ca: filepath.Join(t.TempDir(), "ca.pem")}
	if err := os.WriteFile(w.ca, l.CA(), 0o644); err != nil {
		t.Fatal(err)
	}
	if w.log, err = audit.New(audit.Config{}); err != nil {
		t.Fatal(err)
	}
	if w.proxy, err = proxy.New(proxy.Config{Tenants: w.tenants, Dialer: labDialer{l.Node}, Audit: w.log, Logger: discard}); err != nil {
		t.Fatal(err)
	}
	var listeners []*net.TCPListener
	for network, addr := range map[string]string{"tcp4": "127.0.0.1:8443", "tcp6": "[::1]:8443"} {
		ln, err := l.Node.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, ln.(*net.TCPListener))
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.proxy.Serve(ctx, listeners...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	w.redirect(t)
	w.publish(t, 1, allow...)
	return w
}

// redirect makes the kernel do for the sandbox's addresses what it does for
// slots with names.
func (w *labWorld) redirect(t *testing.T) {
	t.Helper()
	rules := fmt.Sprintf(`table inet test {
		chain output {
			type nat hook output priority -100;
			ip saddr %v tcp dport { 80, 443 } redirect to :8443
			ip6 saddr %v tcp dport { 80, 443 } redirect to :8443
		}
	}`, boxIP4, boxIP6)
	for _, args := range [][]string{
		{"ip", "addr", "add", boxIP4.String() + "/32", "dev", "lo"},
		{"ip", "addr", "add", boxIP6.String() + "/128", "dev", "lo", "nodad"},
		{"nft", rules},
	} {
		if out, err := w.Node.Command(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
}

func (w *labWorld) publish(t *testing.T, generation uint64, allow ...string) egress.Tenant {
	t.Helper()
	p, err := policy.Parse(policy.Document{AllowOut: allow}, policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tenant := egress.Tenant{Sandbox: "box", Policy: p, Generation: generation}
	w.tenants.set(boxIP4, tenant)
	w.tenants.set(boxIP6, tenant)
	return tenant
}

// curl runs curl in the sandbox.
func (w *labWorld) curl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := w.Node.Command(t.Context(), "curl", append([]string{"-sS", "--max-time", "10", "--cacert", w.ca}, args...)...).CombinedOutput()
	return string(out), err
}

// dial connects from the sandbox's IPv4 address.
func (w *labWorld) dial(t *testing.T, addr string) (conn net.Conn, err error) {
	err = w.Node.Do(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: boxIP4.AsSlice()}}
		conn, err = d.DialContext(t.Context(), "tcp", addr)
		return err
	})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// labDialer dials from the node, with the laboratory's DNS.
type labDialer struct{ node *lab.Node }

func (d labDialer) Dial(ctx context.Context, t egress.Target) (net.Conn, netip.AddrPort, error) {
	target := t.Addr.String()
	if t.Name != (policy.Name{}) {
		target = fmt.Sprintf("%v:%d", t.Name, t.Addr.Port())
	}
	conn, err := d.node.Dial(ctx, "tcp", target)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	return conn, conn.RemoteAddr().(*net.TCPAddr).AddrPort(), nil
}

// Start implements proxy.Dialer; the laboratory's names always have to be asked
// for.
func (labDialer) Start(egress.Target) (begun egress.Attempt, ok bool) { return begun, false }

// The kernel says where a connection was going, for both families, and real
// clients get through by name.
func TestLabCurl(t *testing.T) {
	w := newLabWorld(t, "example.com", "*.github.com")
	for _, from := range []netip.Addr{boxIP4, boxIP6} {
		family := []string{"--interface", from.String(), "-4"}
		if from.Is6() {
			family[2] = "-6"
		}
		for _, x := range []struct {
			args []string
			want string
		}{
			{[]string{"http://example.com/"}, "this is example.com at "},
			{[]string{"https://example.com/"}, "this is example.com at "},
			{[]string{"--http1.1", "https://example.com/"}, "this is example.com at "},
			{[]string{"https://example.com/bytes/1000000", "-o", "/dev/null", "-w", "%{size_download} %{http_version}"}, "1000000 2"},
			{[]string{"-d", "some text", "http://example.com/echo"}, "some text"},
			{[]string{"http://google.com/"}, `"error":"blocked by the sandbox's network policy"`},
			{[]string{"https://google.com/"}, "curl: (35)"},
		} {
			if out, _ := w.curl(t, append(x.args, family...)...); !strings.Contains(out, x.want) {
				t.Errorf("from %v, %v: %q, want %q", from, x.args, out, x.want)
			}
		}
	}
	records := w.log.Query(audit.Filter{Sandbox: "box"}).Records
	for _, r := range records {
		if r.Verdict == policy.Deny && r.Dst.Addr().String() != "142.250.74.46" && r.Dst.Addr().String() != "2607:f8b0:4004::64" {
			t.Errorf("a refused flow was going to %v", r.Dst)
		}
	}
	if len(records) != 14 {
		t.Errorf("%d records, want one for each of 14 flows", len(records))
	}
}

// Attack 01 and 02 with a real client: it connects to an address of its choice
// and arrives at the name's.
func TestLabSpoofedAddress(t *testing.T) {
	w := newLabWorld(t, "example.com")
	for _, scheme := range []string{"http", "https"} {
		out, err := w.curl(t, "--interface", boxIP4.String(), "--connect-to", "::45.60.70.80:", scheme+"://example.com/ip")
		if err != nil || strings.Contains(out, "45.60.70.80") {
			t.Errorf("%s: %s, %v", scheme, out, err)
		}
	}
	for _, r := range w.Requests() {
		if host := r.To.Addr().String(); host != "93.184.216.34" && host != "2606:2800:220:1::34" {
			t.Errorf("a request arrived at %s", host)
		}
	}
}

// An update that allows the address in place of the name leaves the flow alone,
// and one that allows neither ends it.
func TestLabUpdateToTheAddress(t *testing.T) {
	w := newLabWorld(t, "example.com")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.CA())
	plain, err := w.dial(t, "93.184.216.34:443")
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(plain, &tls.Config{ServerName: "example.com", RootCAs: pool})
	in := bufio.NewReader(conn)
	ask := func() error {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"); err != nil {
			return err
		}
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r.Body)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	if cut := w.proxy.Reevaluate("box", w.publish(t, 2, "93.184.216.34", "2606:2800:220:1::34")); cut != 0 {
		t.Errorf("%d flows cut, want none", cut)
	}
	if err := ask(); err != nil {
		t.Errorf("after the first update: %v", err)
	}
	if cut := w.proxy.Reevaluate("box", w.publish(t, 3, "www.example.com")); cut != 1 {
		t.Errorf("%d flows cut, want 1", cut)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("after the second update: %v, want a reset", err)
	}
}

// Who connects to the proxy itself was going nowhere that counts.
func TestLabDirectConnection(t *testing.T) {
	w := newLabWorld(t, "*")
	conn, err := w.dial(t, "127.0.0.1:8443")
	if err == nil { // the reset may come before the request goes
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
	}
	if err == nil {
		_, err = ending(t, conn)
	}
	if err == nil || !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("got %v, want a reset", err)
	}
	if n := len(w.Requests()); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}
