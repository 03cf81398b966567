// Package proxy judges the connections of sandboxes that have a policy with
// names. The kernel sends it those to TCP ports 80 and 443 whose address alone
// allows nothing, by rewriting their destination.
//
// The name is in the first bytes that the sandbox sends: in the TLS
// ClientHello on port 443, in every HTTP request on port 80. A connection
// whose name is allowed is made anew, by name, with addresses that the node
// has looked up; the address that the sandbox chose is never dialled then. A
// connection without a usable name is judged by that address, as any other.
// What is refused is told why, as far as its protocol can carry it.
//
// What follows a ClientHello passes unseen. A server that is allowed and serves
// several names can be asked for any of them inside (domain fronting), with an
// encrypted ClientHello as well: the name that is judged is the outer one.
// Requests in the clear have no such gap, and neither have hosts that rules are
// about. TLS to those is answered here, with a certificate of the
// installation's authority that the sandbox trusts. Each request is judged, is
// changed as its rule says, and goes to a server that was found by name and has
// proven it. Header values that are set are secret: they are in no log and no
// record, and are sent to nobody else.
//
// Every connection is known from accept to its end. When the policy of its
// sandbox changes, those that the new one denies are reset, in the middle of
// whatever they do.
package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/intercept"
	"github.com/moat-sandbox/moat/internal/egress/socket"
	"github.com/moat-sandbox/moat/internal/handover"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// Dialer makes connections to the internet. It never connects to an address
// that is not to be reached, whatever a name resolves to; the error is an
// *egress.ForbiddenError then. Connections are *net.TCPConn. The address that
// was contacted is not valid if a proxy has found it.
type Dialer interface {
	Dial(ctx context.Context, t egress.Target) (conn net.Conn, remote netip.AddrPort, err error)
	// Start begins to connect if that needs no waiting; otherwise it is false, and
	// Dial has to be asked.
	Start(t egress.Target) (begun egress.Attempt, ok bool)
}

// Sink is where records go. It does not wait.
type Sink interface {
	Append(audit.Record)
}

// What one sandbox may have open when Limits say nothing.
const (
	DefaultConnections = 2048
	DefaultUndecided   = 256
	DefaultPeek        = 10 * time.Second
)

// Limits bound what one sandbox can take from the others. They count from
// accept on.
type Limits struct {
	// Connections is how many a sandbox may have open; 0 means
	// DefaultConnections. Each takes up to six file descriptors. As many requests
	// may be under way over HTTP/2.
	Connections int
	// Undecided is how many of them may not have said yet where they want to
	// go; 0 means DefaultUndecided.
	Undecided int
	// Peek is how long they may take to say it; 0 means DefaultPeek.
	Peek time.Duration
}

// Config is what a Proxy is made of.
type Config struct {
	// Tenants knows the sandboxes and their policies.
	Tenants egress.Tenants
	Dialer  Dialer
	Audit   Sink
	Limits  Limits
	// Authority makes the certificates for TLS connections that are looked into.
	// Without one they are refused.
	Authority *intercept.Authority
	// Roots are whom servers of such connections may be certified by; nil means
	// whom the node trusts.
	Roots *x509.CertPool
	// Secrets knows what rules may put into requests; nil knows none.
	Secrets policy.Secrets
	// Original tells where a connection was going before the kernel turned it
	// to the proxy, by its descriptor and its other end. Nil asks the kernel.
	Original func(conn int, src netip.AddrPort) (netip.AddrPort, error)
	Logger   *slog.Logger
}

// Proxy judges and forwards connections. It implements egress.Flows.
type Proxy struct {
	tenants   egress.Tenants
	dialer    Dialer
	audit     Sink
	limits    Limits
	authority *intercept.Authority // or nil
	roots     *x509.CertPool       // or nil
	secrets   policy.Secrets
	original  func(conn int, src netip.AddrPort) (netip.AddrPort, error)
	log       *slog.Logger

	http2 *http.Server       // for connections that are looked into
	rest  *handover.Listener // from which it gets them

	boxes registry
	flows sync.WaitGroup // one for each flow outside of a lane
	pages sync.Pool      // of *[pageSize]byte
}

var _ egress.Flows = (*Proxy)(nil)

// New checks the configuration.
func New(cfg Config) (*Proxy, error) {
	switch {
	case cfg.Tenants == nil:
		return nil, errors.New("proxy: no tenants given")
	case cfg.Dialer == nil:
		return nil, errors.New("proxy: no dialler given")
	case cfg.Audit == nil:
		return nil, errors.New("proxy: no sink for records given")
	case cfg.Logger == nil:
		return nil, errors.New("proxy: no logger given")
	case cfg.Limits.Connections < 0 || cfg.Limits.Undecided < 0 || cfg.Limits.Peek < 0:
		return nil, fmt.Errorf("proxy: a limit is negative: %+v", cfg.Limits)
	}
	limits := cfg.Limits
	if limits.Connections == 0 {
		limits.Connections = DefaultConnections
	}
	if limits.Undecided == 0 {
		limits.Undecided = DefaultUndecided
	}
	if limits.Peek == 0 {
		limits.Peek = DefaultPeek
	}
	original := cfg.Original
	if original == nil {
		original = kernelDestination
	}
	secrets := cfg.Secrets
	if secrets == nil {
		secrets = noSecrets{}
	}
	p := &Proxy{
		tenants:   cfg.Tenants,
		dialer:    cfg.Dialer,
		audit:     cfg.Audit,
		limits:    limits,
		authority: cfg.Authority,
		roots:     cfg.Roots,
		secrets:   secrets,
		original:  original,
		log:       cfg.Logger,
		rest:      handover.New(),
		boxes:     registry{boxes: make(map[string]*box)},
	}
	p.http2 = newHTTP2(p.log)
	return p, nil
}

// kernelDestination asks the kernel where a connection was going before its
// destination was rewritten.
func kernelDestination(conn int, src netip.AddrPort) (netip.AddrPort, error) {
	return socket.Original(conn, src.Addr().Is6())
}

// noSecrets are the secrets of nobody.
type noSecrets struct{}

func (noSecrets) Secret(string, string) (s secret.String, known bool) { return s, false }

// Reevaluate implements egress.Flows.
func (p *Proxy) Reevaluate(sandbox string, next egress.Tenant) (cut int) {
	b := p.boxes.find(sandbox)
	if b == nil {
		return 0
	}
	defer p.boxes.release(b)
	return b.reevaluate(next)
}

// Forget implements egress.Flows.
func (p *Proxy) Forget(sandbox string) (cut int) {
	if p.authority != nil {
		defer p.authority.Forget(sandbox) // when nobody asks it any more
	}
	b := p.boxes.find(sandbox)
	if b == nil {
		return 0
	}
	defer p.boxes.release(b)
	return b.close(errEnded.Error())
}
