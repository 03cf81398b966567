package requests

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/moat-sandbox/moat/bench/peers"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/dial"
	"github.com/moat-sandbox/moat/internal/egress/dns"
	"github.com/moat-sandbox/moat/internal/egress/intercept"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// carrierDir has this process be the carrier of a server, with its files in
// that directory, instead of a test: as its rivals it has a process of its own.
const carrierDir = "MOAT_BENCH_CARRIER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(carrierDir); dir != "" {
		if err := carry(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// The addresses from which the carrier's two sandboxes come: requests of the
// first are looked into, connections of the second pass unseen.
var (
	ruledBox  = netip.MustParseAddr("10.99.0.2")
	unseenBox = netip.MustParseAddr("10.99.0.3")
)

// carrierPort is where the kernel sends the sandboxes' connections.
const carrierPort = 8443

// tenants are the sandboxes of the carrier.
type tenants map[netip.Addr]egress.Tenant

// Tenant implements egress.Tenants.
func (t tenants) Tenant(src netip.Addr) (egress.Tenant, bool) {
	found, ok := t[src]
	return found, ok
}

// carry is what a server starts for its sandboxes: resolver, dialler,
// authority, audit log and proxy.
func carry(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	known, err := carriedBoxes()
	if err != nil {
		return err
	}
	never, err := policy.NewNever(nil, nil)
	if err != nil {
		return err
	}
	resolver, err := dns.NewResolver(dns.ResolverConfig{Upstreams: []netip.AddrPort{netip.MustParseAddrPort(lab.DNSServer)}, Never: never})
	if err != nil {
		return err
	}
	defer resolver.Close()
	dialer, err := dial.New(dial.Config{Resolver: resolver, Never: never})
	if err != nil {
		return err
	}
	root, err := intercept.OpenRoot(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	authority, err := intercept.New(intercept.Config{Root: root})
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(filepath.Join(dir, "lab-ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	log, err := audit.New(audit.Config{})
	if err != nil {
		return err
	}
	p, err := proxy.New(proxy.Config{
		Tenants: known, Dialer: dialer, Audit: log, Authority: authority, Roots: roots, Logger: slog.New(slog.DiscardHandler),
		Limits: proxy.Limits{Connections: 1 << 16, Undecided: 1 << 16},
	})
	if err != nil {
		return err
	}
	ln, err := proxy.Listen(ctx, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), carrierPort))
	if err != nil {
		return err
	}
	return p.Serve(ctx, ln)
}

func carriedBoxes() (tenants, error) {
	ruled, err := policy.Parse(policy.Document{AllowOut: []string{benchHost}, Rules: policy.Rules{Hosts: []policy.HostRule{{
		Host: benchHost, Headers: []policy.Header{{Name: "Authorization", Value: secret.New(benchValue)}},
	}}}}, policy.Options{Rules: true})
	if err != nil {
		return nil, err
	}
	unseen, err := policy.Parse(policy.Document{AllowOut: []string{benchHost}}, policy.Options{Rules: true})
	if err != nil {
		return nil, err
	}
	return tenants{
		ruledBox:  {Sandbox: "ruled", Team: "team", Policy: ruled, Generation: 1},
		unseenBox: {Sandbox: "unseen", Team: "team", Policy: unseen, Generation: 1},
	}, nil
}

// startCarrier starts the carrier on the laboratory's node, and has the kernel
// send it what comes from its sandboxes.
func startCarrier(b *testing.B, l *lab.Lab, dir string) *peers.Running {
	b.Helper()
	rules := fmt.Sprintf(`table inet bench {
		chain output {
			type nat hook output priority -100;
			ip saddr { %v, %v } tcp dport { 80, 443 } redirect to :%d
		}
	}`, ruledBox, unseenBox, carrierPort)
	for _, args := range [][]string{
		{"ip", "addr", "add", ruledBox.String() + "/32", "dev", "lo"},
		{"ip", "addr", "add", unseenBox.String() + "/32", "dev", "lo"},
		{"nft", rules},
	} {
		if out, err := l.Node.Command(b.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	return startRival(b, l, peers.Peer{
		Name: "moat", Program: os.Args[0], Env: append(os.Environ(), carrierDir+"="+dir), Listens: fmt.Sprintf("127.0.0.1:%d", carrierPort),
	})
}

// startRival starts a program on the node. It ends with the benchmark.
func startRival(b *testing.B, l *lab.Lab, p peers.Peer) *peers.Running {
	b.Helper()
	r, err := p.Start(context.Background(), peers.Node{Node: l.Node})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Stop)
	return r
}
