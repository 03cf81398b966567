package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/dial"
	"github.com/moat-sandbox/moat/internal/egress/dns"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// carrier speaks for sandboxes where addresses alone cannot tell what they may
// do: the proxy and the resolver, behind the kernel's doors. It lives and dies
// with this process. What the kernel redirects to it is refused then, and
// nothing else changes.
type carrier struct {
	tenants  egress.Registry
	resolver *dns.Resolver
	queries  *dns.Server
	proxy    *proxy.Proxy

	listeners []*net.TCPListener // of the proxy
	stop      context.CancelFunc // nil before anything is served
	serving   errgroup.Group
}

// openCarrier starts proxy and resolver: when it returns, slots may open.
// Should one of them fail later, failed is told why; it must not wait.
func openCarrier(c Config, h home, never *policy.Never, doors kernel.Doors, look insight, log *audit.Log, failed func(error)) (_ *carrier, err error) {
	k := new(carrier)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start proxy and resolver: %w", err), k.close())
		}
	}()
	k.resolver, err = dns.NewResolver(dns.ResolverConfig{Upstreams: c.UpstreamDNS, Never: never, Log: c.Logger})
	if err != nil {
		return nil, fmt.Errorf("%w (--upstream-dns names others)", err)
	}
	k.queries, err = dns.NewServer(dns.ServerConfig{
		Listen:  []netip.AddrPort{netip.AddrPortFrom(doors.Addr4, doors.Resolver), netip.AddrPortFrom(doors.Addr6, doors.Resolver)},
		Tenants: &k.tenants, Resolver: k.resolver, Observer: observer{log}, Log: c.Logger,
	})
	if err != nil {
		return nil, err
	}
	dialer, err := dial.New(dial.Config{Resolver: k.resolver, Never: never, Home: h.ways})
	if err != nil {
		return nil, err
	}
	k.proxy, err = proxy.New(proxy.Config{
		Tenants: &k.tenants, Dialer: dialer, Audit: log, Logger: c.Logger,
		Authority: look.authority, Roots: look.roots, Secrets: look.secrets,
	})
	if err != nil {
		return nil, err
	}
	for _, addr := range []netip.Addr{doors.Addr4, doors.Addr6} {
		ln, err := proxy.Listen(context.Background(), netip.AddrPortFrom(addr, doors.Proxy))
		if err != nil {
			return nil, err
		}
		k.listeners = append(k.listeners, ln)
	}
	k.serve(failed)
	return k, nil
}

// serve answers at the doors until close. One that breaks takes the other with
// it: half a carrier would leave sandboxes with names and nothing behind them.
func (k *carrier) serve(failed func(error)) {
	ctx, stop := context.WithCancel(context.Background())
	k.stop = stop
	run := func(what string, serve func() error) {
		k.serving.Go(func() error {
			err := serve()
			stop()
			if err != nil {
				err = fmt.Errorf("%s: %w", what, err)
				failed(err)
			}
			return err
		})
	}
	run("serve resolver", func() error { return k.queries.Run(ctx) })
	run("serve proxy", func() error { return k.proxy.Serve(ctx, k.listeners...) })
}

// close cuts every flow that is carried, and waits for that. What has failed
// before has been told.
func (k *carrier) close() error {
	var errs []error
	if k.stop != nil {
		k.stop()
		_ = k.serving.Wait()
	} else {
		for _, ln := range k.listeners {
			errs = append(errs, ln.Close())
		}
		if k.queries != nil {
			errs = append(errs, k.queries.Close())
		}
	}
	if k.resolver != nil {
		errs = append(errs, k.resolver.Close())
	}
	return errors.Join(errs...)
}

// observer writes the queries of sandboxes to the audit log.
type observer struct{ log *audit.Log }

// ObserveQuery implements dns.Observer.
func (o observer) ObserveQuery(q dns.Query) {
	o.log.Append(audit.Record{
		Time: q.Began, Sandbox: q.Sandbox, Protocol: audit.DNS, Dst: netip.AddrPortFrom(netip.Addr{}, dnsPort),
		Name: q.Name, Verdict: q.Verdict, Rule: q.Rule, Entry: q.Entry, Reason: q.Reason,
		Generation: q.Generation, Duration: q.Duration, Method: q.Type,
	})
}

// dnsPort is where sandboxes send their queries, whoever answers them.
const dnsPort = 53
