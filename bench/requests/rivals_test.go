package requests

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/bench/peers"
	"github.com/moat-sandbox/moat/internal/egress/intercept"
	"github.com/moat-sandbox/moat/internal/lab"
)

// What all are asked for, and have to set.
const (
	benchHost  = "example.com"
	benchValue = "Bearer sk-0123456789abcdef0123456789abcdef"
)

// way is one way from a client on the node to the server.
type way struct {
	name   string
	source netip.Addr     // where the client connects from; not valid for any
	proxy  string         // the proxy that the client names; empty for none
	ca     []byte         // whom the client trusts
	server *peers.Running // nil for none
}

// rivals sets up a laboratory and, in it, whoever can set a header in TLS, and
// two who only let pass: nobody at all, and moat without a rule.
func rivals(b *testing.B) (*lab.Lab, []way) {
	b.Helper()
	l, dir := newBenchLab(b)
	carrier := startCarrier(b, l, dir)
	root, err := intercept.OpenRoot(filepath.Join(dir, "ca.pem"))
	if err != nil {
		b.Fatal(err)
	}
	mitm := startRival(b, l, peers.Peer{
		Name: "mitmproxy", Package: "mitmproxy", Program: "mitmdump", Listens: "127.0.0.1:8081", Args: []string{
			"-q", "--listen-host", "127.0.0.1", "-p", "8081",
			"--set", "confdir=" + dir, "--set", "ssl_verify_upstream_trusted_ca=" + filepath.Join(dir, "lab-ca.pem"),
			"--set", "stream_large_bodies=1m", "--modify-headers", "/~q/Authorization/" + benchValue,
		},
	})
	mitmCA, err := os.ReadFile(filepath.Join(dir, "mitmproxy-ca-cert.pem"))
	if err != nil {
		b.Fatal(err)
	}
	squid := startSquid(b, l, dir, 3128, "bump all", "request_header_access Authorization deny all", "request_header_add Authorization \""+benchValue+"\" all")
	return l, []way{
		{name: "nothing", ca: l.CA()},
		{name: "moat, unseen", source: unseenBox, ca: l.CA(), server: carrier},
		{name: "moat", source: ruledBox, ca: root.PEM(), server: carrier},
		{name: "mitmproxy", proxy: "http://127.0.0.1:8081", ca: mitmCA, server: mitm},
		{name: "squid", proxy: "http://127.0.0.1:3128", ca: root.PEM(), server: squid},
	}
}

// newBenchLab returns a laboratory and a directory for whoever works in it.
func newBenchLab(b *testing.B) (*lab.Lab, string) {
	b.Helper()
	// Where Squid's account gets at it. Removed after the lab is closed: only then
	// nobody writes there any more.
	dir, err := os.MkdirTemp("", "moat-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	l, err := lab.New(b.Context(), lab.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "lab-ca.pem"), l.CA(), 0o644); err != nil {
		b.Fatal(err)
	}
	return l, dir
}

// startSquid starts Squid with what it does to TLS and other lines of its
// configuration. It signs with the carrier's root.
func startSquid(b *testing.B, l *lab.Lab, dir string, port int, bump string, more ...string) *peers.Running {
	b.Helper()
	home := filepath.Join(dir, fmt.Sprint("squid-", port))
	if err := os.Mkdir(home, 0o777); err != nil {
		b.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		b.Fatal(err)
	}
	conf := strings.Join(append([]string{
		fmt.Sprintf("http_port 127.0.0.1:%d ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=4MB tls-cert=%s/ca.pem", port, home),
		"sslcrtd_program /usr/lib/squid/security_file_certgen -s " + home + "/certs -M 4MB",
		"http_access allow all", "acl start at_step SslBump1", "acl name ssl::server_name " + benchHost,
		"ssl_bump peek start", "ssl_bump " + bump,
		"tls_outgoing_options cafile=" + dir + "/lab-ca.pem", "dns_nameservers " + netip.MustParseAddrPort(lab.DNSServer).Addr().String(),
		"cache deny all", "access_log none", "cache_log " + home + "/log", "pid_filename " + home + "/pid", "shutdown_lifetime 0 seconds",
		"max_filedescriptors 65536",
	}, more...), "\n") + "\n"
	if err := os.WriteFile(filepath.Join(home, "ca.pem"), root, 0o644); err != nil {
		b.Fatal(err)
	}
	prepare := "/usr/lib/squid/security_file_certgen -c -s '" + home + "/certs' -M 4MB && chown -R proxy '" + home + "'"
	if out, err := exec.Command("sh", "-c", prepare).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return startRival(b, l, peers.Peer{
		Name: "Squid", Package: "squid-openssl", Program: "squid", Args: []string{"-N", "-f", home + "/conf"},
		Files: map[string]string{home + "/conf": conf}, Listens: fmt.Sprintf("127.0.0.1:%d", port),
	})
}

// dialer connects as a client that takes this way.
func (w way) dialer() *net.Dialer {
	d := &net.Dialer{}
	if w.source.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: w.source.AsSlice()}
		d.Control = anyPort
	}
	return d
}

// throughProxy is the proxy for an http.Transport.
func (w way) throughProxy(*http.Request) (*url.URL, error) {
	if w.proxy == "" {
		return nil, nil
	}
	return url.Parse(w.proxy)
}
