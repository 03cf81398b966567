package intercept

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newAuthority(t testing.TB) (*Authority, *Root, *clock) {
	t.Helper()
	c := &clock{time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	root, err := openRoot(filepath.Join(t.TempDir(), "ca.pem"), c.t)
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Root: root, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return a, root, c
}

// chain returns what a sandbox is sent for a name.
func chain(t testing.TB, a *Authority, sandbox string, hosts []string, name string) (leaf, intermediate *x509.Certificate) {
	t.Helper()
	cfg, err := a.ServerConfig(sandbox, hosts, name, "h2")
	if err != nil {
		t.Fatal(err)
	}
	sent := cfg.Certificates[0].Certificate
	if len(sent) != 2 {
		t.Fatalf("%d certificates are sent, want the leaf and the intermediate", len(sent))
	}
	leaf, err1 := x509.ParseCertificate(sent[0])
	intermediate, err2 := x509.ParseCertificate(sent[1])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return leaf, intermediate
}

// verify plays a client that trusts the root alone.
func verify(root *Root, leaf, intermediate *x509.Certificate, name string, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(root.PEM())
	between.AddCert(intermediate)
	_, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, CurrentTime: now})
	return err
}

func TestClientsTrustWhatRulesName(t *testing.T) {
	a, root, c := newAuthority(t)
	hosts := []string{"api.example.com", "*.github.com"}
	for _, name := range []string{"api.example.com", "a.github.com", "a.b.github.com"} {
		leaf, between := chain(t, a, "one", hosts, name)
		for what, now := range map[string]time.Time{"now": c.t, "with a slow clock": c.t.Add(-skew + time.Minute), "with a fast clock": c.t.Add(skew)} {
			if err := verify(root, leaf, between, name, now); err != nil {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
	for _, name := range []string{"example.com", "x.api.example.com", "github.com", "evilgithub.com", ".github.com", "evil.example", ""} {
		var outside *OutsideError
		if _, err := a.ServerConfig("one", hosts, name, "h2"); !errors.As(err, &outside) {
			t.Errorf("%q: %v, want an OutsideError", name, err)
		}
	}
	if _, err := a.ServerConfig("one", nil, "api.example.com", "h2"); err == nil {
		t.Error("without hosts a certificate was made")
	}
}

// What gets at an intermediate's key can still impersonate nothing but the
// hosts of the rules: clients refuse it.
func TestIntermediateIsConstrained(t *testing.T) {
	_, root, c := newAuthority(t)
	for what, hosts := range map[string][]string{"a name": {"api.example.com"}, "names below one": {"*.example.com"}} {
		by, err := root.intermediate(hosts, c.t)
		if err != nil {
			t.Fatal(err)
		}
		if !by.cert.PermittedDNSDomainsCritical || !by.cert.MaxPathLenZero {
			t.Errorf("%s: the constraints are not critical, or it may sign authorities", what)
		}
		for _, name := range []string{"evil.example", "example.com", "badexample.com", "github.com"} {
			forged, err := by.sign(name, c.t)
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(root, forged.h2.Certificates[0].Leaf, by.cert, name, c.t); err == nil {
				t.Errorf("%s: a client takes a certificate for %s", what, name)
			}
		}
		address := &x509.Certificate{
			SerialNumber: newSerial(), NotBefore: c.t, NotAfter: c.t.Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(93, 184, 216, 34)},
		}
		forged, err := sign(address, by.cert, by.leafKey, by.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(root, forged, by.cert, "93.184.216.34", c.t); err == nil {
			t.Errorf("%s: a client takes a certificate for an address", what)
		}
	}
}

// A pattern for all names cannot be a constraint; the name asked for can.
func TestPatternForAllNames(t *testing.T) {
	a, root, c := newAuthority(t)
	leaf, between := chain(t, a, "one", []string{"*"}, "a.example.com")
	if err := verify(root, leaf, between, "a.example.com", c.t); err != nil {
		t.Error(err)
	}
	if want := []string{"a.example.com"}; !slices.Equal(between.PermittedDNSDomains, want) {
		t.Errorf("constraint %q, want %q", between.PermittedDNSDomains, want)
	}
	if _, narrow := chain(t, a, "one", []string{"*", "b.example.com"}, "b.example.com"); !slices.Equal(narrow.PermittedDNSDomains, []string{"b.example.com"}) {
		t.Errorf("constraint %q, want the narrower host", narrow.PermittedDNSDomains)
	}
}

func TestManyHosts(t *testing.T) {
	a, root, c := newAuthority(t)
	hosts := make([]string, 3*maxHosts+1)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("host%d.example.com", i)
	}
	seen := make(map[string]bool)
	for _, name := range hosts {
		leaf, between := chain(t, a, "one", hosts, name)
		if err := verify(root, leaf, between, name, c.t); err != nil {
			t.Error(err)
		}
		if n := len(between.PermittedDNSDomains); n > maxHosts {
			t.Errorf("an intermediate has %d hosts", n)
		}
		seen[string(between.Raw)] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d intermediates for %d hosts, want 4", len(seen), len(hosts))
	}
}

// Sandboxes share nothing, a change of rules makes a new intermediate, and
// certificates are made anew before they end.
func TestWhatIsKept(t *testing.T) {
	a, root, c := newAuthority(t)
	hosts := []string{"example.com"}
	leaf, between := chain(t, a, "one", hosts, "example.com")
	if again, _ := chain(t, a, "one", slices.Clone(hosts), "example.com"); !again.Equal(leaf) {
		t.Error("the same question got another certificate")
	}
	if _, other := chain(t, a, "two", hosts, "example.com"); other.Equal(between) {
		t.Error("two sandboxes have one intermediate")
	}
	if _, changed := chain(t, a, "one", append(hosts, "github.com"), "example.com"); changed.Equal(between) {
		t.Error("other rules have the same intermediate")
	}
	for range 40 {
		c.t = c.t.Add(leafLife - skew)
		leaf, between := chain(t, a, "one", hosts, "example.com")
		if err := verify(root, leaf, between, "example.com", c.t.Add(skew-time.Minute)); err != nil {
			t.Fatalf("on %v: %v", c.t, err)
		}
	}
	a.Forget("one")
	if _, kept := a.issuers["one"]; kept || len(a.issuers) != 1 {
		t.Error("forgetting leaves something behind, or takes too much")
	}
}

func TestBounds(t *testing.T) {
	a, _, _ := newAuthority(t)
	for i := range maxLeafs + 10 {
		if _, err := a.ServerConfig("one", []string{"*.example.com"}, fmt.Sprintf("%d.example.com", i), "h2"); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(a.issuers["one"].leafs); n != maxLeafs {
		t.Errorf("%d certificates are kept, want %d", n, maxLeafs)
	}
	for i := range maxSandboxes + 10 {
		a.issuer(fmt.Sprint(i), nil)
	}
	if n := len(a.issuers); n != maxSandboxes {
		t.Errorf("%d sandboxes are kept, want %d", n, maxSandboxes)
	}
}

// A client gets through a handshake with nothing but the root, and resumes its
// session, but never that of another sandbox.
func TestHandshake(t *testing.T) {
	a, root, c := newAuthority(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root.PEM())
	client := &tls.Config{
		ServerName: "example.com", RootCAs: roots, NextProtos: []string{"h2", "http/1.1"}, Time: c.now,
		ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}
	for _, x := range []struct {
		sandbox, protocol string
		resumed           bool
	}{{"one", "h2", false}, {"one", "h2", true}, {"two", "h2", false}, {"two", "http/1.1", false}} {
		server, err := a.ServerConfig(x.sandbox, []string{"example.com"}, "example.com", x.protocol)
		if err != nil {
			t.Fatal(err)
		}
		state, err := handshake(client, server)
		if err != nil {
			t.Fatal(err)
		}
		if state.DidResume != x.resumed || state.NegotiatedProtocol != x.protocol {
			t.Errorf("%+v: resumed %v, protocol %q", x, state.DidResume, state.NegotiatedProtocol)
		}
	}
}

// handshake connects the two and lets the server say a byte, after which the
// client has its session ticket.
func handshake(client, server *tls.Config) (tls.ConnectionState, error) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	go func() {
		conn := tls.Server(there, server)
		_, _ = conn.Write([]byte{1})
	}()
	conn := tls.Client(here, client)
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return tls.ConnectionState{}, err
	}
	return conn.ConnectionState(), nil
}

func BenchmarkMint(b *testing.B) {
	a, _, _ := newAuthority(b)
	n := 0
	for b.Loop() {
		n++
		if _, err := a.ServerConfig("one", []string{"*.example.com"}, fmt.Sprintf("%d.example.com", n), "h2"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKept(b *testing.B) {
	a, _, _ := newAuthority(b)
	for b.Loop() {
		if _, err := a.ServerConfig("one", []string{"example.com"}, "example.com", "h2"); err != nil {
			b.Fatal(err)
		}
	}
}
