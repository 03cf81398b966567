// Package dial makes the connections that the node opens on behalf of
// sandboxes. It is the only place that does, and it judges every address at
// the moment it connects to it: what is never reachable is not reached,
// whatever a name has resolved to.
package dial

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/socket"
	"github.com/moat-sandbox/moat/internal/policy"
)

const (
	// DefaultTimeout bounds a whole dial, resolving included, unless the
	// configuration says otherwise.
	DefaultTimeout = 15 * time.Second
	// stagger is how long an attempt is alone before the next one joins it
	// (RFC 8305, section 5).
	stagger = 250 * time.Millisecond
	// maxAttempts bounds the addresses of one name that are tried.
	maxAttempts = 16
)

// Resolver looks names up.
type Resolver interface {
	// Lookup returns the addresses of a name and for how long they are valid.
	Lookup(ctx context.Context, name string) ([]netip.Addr, time.Duration, error)
	// Known returns them if nobody has to be asked for that.
	Known(name policy.Name) (addrs []netip.Addr, known bool)
}

// Config configures a Dialer.
type Config struct {
	// Resolver is required.
	Resolver Resolver
	// Never is the table of addresses that are not dialled. Required.
	Never *policy.Never
	// Home are the ways to the public URLs of this server, by Target.Home.
	Home map[uint16]*Inward
	// Timeout bounds a dial; 0 means DefaultTimeout.
	Timeout time.Duration
}

// Dialer opens TCP connections to the internet, for whom a policy has allowed
// it already. It uses no proxy and follows nothing.
type Dialer struct {
	resolver Resolver
	never    *policy.Never
	home     map[uint16]*Inward
	timeout  time.Duration
	net      net.Dialer

	// enter calls connect inside the network namespace to dial from; tests set
	// it to their laboratory's.
	enter func(connect func() error) error
	// elsewhere refuses connections to the node itself. Tests whose servers are
	// there replace it.
	elsewhere func(local, remote netip.Addr) error
}

// New returns a dialler.
func New(cfg Config) (*Dialer, error) {
	switch {
	case cfg.Resolver == nil:
		return nil, errors.New("dialler: resolver: missing")
	case cfg.Never == nil:
		return nil, errors.New("dialler: never: missing")
	case cfg.Timeout < 0:
		return nil, fmt.Errorf("dialler: timeout of %v", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	d := &Dialer{
		resolver:  cfg.Resolver,
		never:     cfg.Never,
		home:      maps.Clone(cfg.Home),
		timeout:   cfg.Timeout,
		enter:     func(connect func() error) error { return connect() },
		elsewhere: elsewhere,
	}
	d.net = net.Dialer{KeepAliveConfig: socket.KeepAlive(), ControlContext: d.control}
	return d, nil
}

// DialName connects to one of the addresses of a name. The connection is a
// *net.TCPConn, the error an *Error.
func (d *Dialer) DialName(ctx context.Context, name string, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	conn, err := d.dialName(ctx, name, port, nil)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// dialName connects to one of the addresses of a name that are permitted; nil
// permits all.
func (d *Dialer) dialName(ctx context.Context, name string, port uint16, permit func(netip.Addr) bool) (*net.TCPConn, error) {
	target := fmt.Sprintf("%s:%d", name, port)
	addrs, err := d.lookup(ctx, name, target, permit)
	if err != nil {
		return nil, err
	}
	conn, err := d.race(ctx, order(addrs), port)
	if err != nil {
		return nil, failed(target, err)
	}
	return conn, nil
}

// DialAddr connects to an address. The connection is a *net.TCPConn, the error
// an *Error.
func (d *Dialer) DialAddr(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	conn, err := d.connect(ctx, addr)
	if err != nil {
		return nil, failed(addr.String(), err)
	}
	return conn, nil
}

// connect makes one attempt.
func (d *Dialer) connect(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
	// The net package turns IPv4-mapped addresses into IPv4 before control sees
	// them. They are not what anybody means: refused here as they are.
	if err := egress.Judge(d.never, addr.Addr()); err != nil {
		return nil, &attemptError{addr, err}
	}
	var conn net.Conn
	err := d.enter(func() (err error) {
		// Not DialTCP: it binds the socket first, even to no address, and takes a
		// port for itself that connections to other addresses could share.
		conn, err = d.net.DialContext(ctx, "tcp", addr.String())
		return err
	})
	if err != nil {
		return nil, &attemptError{addr, err}
	}
	tcp := conn.(*net.TCPConn) // what dialling "tcp" gives
	if err := d.elsewhere(addrOf(tcp.LocalAddr()), addrOf(tcp.RemoteAddr())); err != nil {
		return nil, &attemptError{addr, errors.Join(err, tcp.Close())}
	}
	return tcp, nil
}

// elsewhere refuses a connection to the node itself, by an address that it had not
// when the table was made. The kernel gives such a connection the same address
// on both ends. Nothing has been sent over it.
func elsewhere(local, remote netip.Addr) error {
	if local.IsValid() && remote.IsValid() && local != remote {
		return nil
	}
	return &egress.ForbiddenError{Addr: remote, Why: "an address of the machine that runs the sandbox"}
}

// addrOf returns the address of a TCP connection's end.
func addrOf(end net.Addr) netip.Addr {
	tcp, ok := end.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}

// control judges the address that the socket is about to connect to.
func (d *Dialer) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return &egress.ForbiddenError{Why: fmt.Sprintf("%q is not an address", address)}
	}
	return egress.Judge(d.never, addr.Addr())
}
