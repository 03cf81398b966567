package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/moat-sandbox/moat/bench/load"
	"github.com/moat-sandbox/moat/bench/peers"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/dns"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/test/harness"
)

// BenchmarkResolve measures answers to queries of a sandbox that may reach
// serverName only: its name from the cache, and a forbidden name, which gets an
// address of no use. Each of the clients waits for its answers.
func BenchmarkResolve(b *testing.B) {
	node := startPlain(b)
	const firstPort = 5301
	redirect := "udp dport 53 redirect to :%d"
	ours := plainSlot(b, node, 1, fmt.Sprintf(redirect, firstPort))
	all := []flows{{"moat", ours, lab.DNSServer, startResolver(b, node.Node, fmt.Sprintf("198.18.1.0:%d", firstPort))}}
	p := dnsmasq(firstPort + 1)
	if pid, ok := p.start(b, node.Node); ok {
		all = append(all, flows{p.Name, plainSlot(b, node, 2, fmt.Sprintf(redirect, p.port)), lab.DNSServer, pid})
	}
	for _, kind := range []struct{ what, name string }{{"cached", serverName}, {"synthetic", "evil.example"}} {
		for _, workers := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/clients=%d", kind.what, workers), func(b *testing.B) {
				compare(b, queries(b, all, kind.name, workers), rate("answers/s"), waited(0.5), waited(0.99), cost())
			})
		}
	}
}

func queries(b *testing.B, all []flows, name string, workers int) (c []contender) {
	for _, f := range all {
		c = append(c, contender{f.name, f.server, func() load.Outcome {
			return f.from.run(b, load.Load{
				Kind: load.Queries, Target: f.to, Name: name, Workers: workers, Count: 50_000, Time: roundTime,
			})
		}})
	}
	return c
}

// dnsmasq resolves serverName and has one address for all other names.
func dnsmasq(port int) peer {
	return onNode(port, peers.Peer{
		Name: "dnsmasq", Package: "dnsmasq", Program: "dnsmasq",
		Args: []string{
			"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", fmt.Sprintf("--port=%d", port),
			"--no-resolv", "--no-hosts", "--cache-size=10000", "--dns-forward-max=1000",
			"--server=/" + serverName + "/8.8.8.8", "--address=/#/198.19.0.1",
		},
	})
}

// startResolver starts our resolver on a node, waits until it listens and returns
// its process id.
func startResolver(b *testing.B, node *lab.Node, listen string) int {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	r, err := peers.Peer{Name: "the resolver", Program: self, Env: append(harness.CleanEnv(), resolverJob+"="+listen), Listens: listen}.Start(b.Context(), peers.Node{Node: node})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Stop)
	return r.PID
}

// anyone is the tenant of every address.
type anyone egress.Tenant

// Tenant implements egress.Tenants.
func (a anyone) Tenant(netip.Addr) (egress.Tenant, bool) { return egress.Tenant(a), true }

// runResolver is our resolver without the limit on the queries of a sandbox,
// for one that may reach serverName only.
func runResolver(ctx context.Context, listen string) (err error) {
	addr, err := netip.ParseAddrPort(listen)
	if err != nil {
		return fmt.Errorf("where to listen: %w", err)
	}
	never, err := policy.NewNever(nil, nil)
	if err != nil {
		return err
	}
	p, err := policy.Parse(policy.Document{AllowOut: []string{serverName}}, policy.Options{Never: never})
	if err != nil {
		return err
	}
	resolver, err := dns.NewResolver(dns.ResolverConfig{
		Upstreams: []netip.AddrPort{netip.MustParseAddrPort(lab.DNSServer)}, Never: never,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resolver.Close()) }()
	server, err := dns.NewServer(dns.ServerConfig{
		Listen: []netip.AddrPort{addr}, Tenants: anyone{Sandbox: "box", Policy: p}, Resolver: resolver,
		Limits: dns.Limits{PerSecond: 1 << 30, Burst: 1 << 30},
	})
	if err != nil {
		return err
	}
	return server.Run(ctx)
}
