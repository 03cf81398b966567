package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/dns"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
)

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
