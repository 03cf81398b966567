package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Dial connects to a target. The connection is a *net.TCPConn, the error an
// *Error. Remote is the address contacted; it is not valid where a proxy has
// looked the name up, or nobody has because it leads home.
func (d *Dialer) Dial(ctx context.Context, t egress.Target) (conn net.Conn, remote netip.AddrPort, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	named := t.Name != policy.Name{}
	switch {
	case t.Home != 0:
		conn, err = d.inward(ctx, t)
		return conn, remote, err
	case t.Through != nil && named && t.Permit == nil:
		conn, err = d.through(ctx, *t.Through, t.Name.String(), t.Addr)
		return conn, remote, err
	case !named && t.Through != nil:
		conn, err = d.through(ctx, *t.Through, "", t.Addr)
		return conn, t.Addr, err
	case !named:
		conn, err = d.DialAddr(ctx, t.Addr)
		return conn, t.Addr, err
	}
	if t.Through != nil { // a proxy could not be told which addresses will do
		target := fmt.Sprintf("%v:%d", t.Name, t.Addr.Port())
		addrs, err := d.lookup(ctx, t.Name.String(), target, t.Permit)
		if err != nil {
			return nil, remote, err
		}
		remote = netip.AddrPortFrom(addrs[0], t.Addr.Port())
		conn, err = d.through(ctx, *t.Through, "", remote)
		return conn, remote, err
	}
	tcp, err := d.dialName(ctx, t.Name.String(), t.Addr.Port(), t.Permit)
	if err != nil {
		return nil, remote, err
	}
	remote = tcp.RemoteAddr().(*net.TCPAddr).AddrPort() // a TCP connection has no other
	return tcp, netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port()), nil
}

// inward connects to the public URLs of this server.
func (d *Dialer) inward(ctx context.Context, t egress.Target) (net.Conn, error) {
	target := fmt.Sprintf("%v:%d", t.Name, t.Addr.Port())
	way := d.home[t.Home]
	if way == nil || !t.Src.IsValid() {
		return nil, failed(target, errNotHome)
	}
	conn, err := way.dial(ctx, t.Src)
	if err != nil {
		return nil, failed(target, err)
	}
	return conn, nil
}

var errNotHome = errors.New("no public URLs of this server are there")

// lookup returns the addresses of a name that are permitted.
func (d *Dialer) lookup(ctx context.Context, name, target string, permit func(netip.Addr) bool) ([]netip.Addr, error) {
	addrs, _, err := d.resolver.Lookup(ctx, name)
	if err == nil && len(addrs) == 0 {
		err = egress.ErrNoAddress
	}
	if err != nil {
		return nil, unresolved(target, err)
	}
	if permit == nil {
		return addrs, nil
	}
	permitted := make([]netip.Addr, 0, len(addrs))
	for _, addr := range addrs {
		if permit(addr) {
			permitted = append(permitted, addr)
		}
	}
	if len(permitted) == 0 {
		return nil, &Error{Target: target, Kind: Forbidden, Err: &egress.NotPermittedError{Name: name, Addr: addrs[0]}}
	}
	return permitted, nil
}

// through connects to a name, or else an address, by way of a proxy. That
// address and the proxy's own are judged as any other.
func (d *Dialer) through(ctx context.Context, up policy.Upstream, name string, addr netip.AddrPort) (net.Conn, error) {
	target := addr.String()
	if name != "" {
		target = fmt.Sprintf("%s:%d", name, addr.Port())
	} else if err := egress.Judge(d.never, addr.Addr()); err != nil {
		return nil, failed(target, &attemptError{addr, err})
	}
	var conn net.Conn
	var err error
	if (up.Name != policy.Name{}) {
		conn, err = d.DialName(ctx, up.Name.String(), up.Port)
	} else {
		conn, err = d.DialAddr(ctx, netip.AddrPortFrom(up.Addr, up.Port))
	}
	if err != nil {
		return nil, proxyFailed(target, err)
	}
	if err := connectSOCKS(ctx, conn, up, name, addr); err != nil {
		_ = conn.Close() // nothing was said on it that matters
		return nil, proxyFailed(target, err)
	}
	return conn, nil
}
