package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress"
)

// Listen opens a listener for Serve. Its connections find out within about two
// minutes that the other side is gone.
func Listen(ctx context.Context, addr netip.AddrPort) (*net.TCPListener, error) {
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	// Connections inherit it from the listener, which saves to set it for each.
	lc := net.ListenConfig{KeepAlive: -1, Control: setKeepAlive}
	ln, err := lc.Listen(ctx, network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return ln.(*net.TCPListener), nil // what listening on "tcp4" and "tcp6" gives
}

func setKeepAlive(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		for _, o := range []struct{ level, option, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60}, // seconds, as the next
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4},
		} {
			failed = errors.Join(failed, os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o.level, o.option, o.value)))
		}
	})
	return errors.Join(err, failed)
}

// Serve accepts connections until ctx ends. Then it closes the listeners,
// resets what is still open and waits for that. It may be called once.
func (p *Proxy) Serve(ctx context.Context, listeners ...*net.TCPListener) error {
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		for _, ln := range listeners {
			_ = ln.Close() // it has been closed before, if it fails
		}
	})
	defer stop()
	for _, ln := range listeners {
		group.Go(func() error { return p.accept(ctx, ln) })
	}
	group.Go(func() error { return p.serveHTTP2(ctx) })
	err := group.Wait()
	for _, b := range p.boxes.all() {
		b.close("the proxy has stopped")
		p.boxes.release(b)
	}
	p.flows.Wait()
	return err
}

// How long to wait when the node is out of descriptors or memory.
const (
	shortestPause = 5 * time.Millisecond
	longestPause  = time.Second
)

// accept takes connections from a listener until it is closed.
func (p *Proxy) accept(ctx context.Context, ln *net.TCPListener) error {
	pause := shortestPause
	for {
		conn, err := ln.AcceptTCP()
		switch {
		case err == nil:
			pause = shortestPause
			p.admit(ctx, conn)
		case ctx.Err() != nil:
			return nil
		case isPassing(err):
			p.log.Warn("proxy cannot accept connections", "pause", pause, "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, longestPause)
		default:
			return fmt.Errorf("proxy: %w", err)
		}
	}
}

// isPassing reports whether accepting may work again later.
func isPassing(err error) bool {
	for _, passing := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// admit counts a connection in and serves it. What has no sandbox, or one that
// has too many connections, costs no more than a reset.
func (p *Proxy) admit(ctx context.Context, conn *net.TCPConn) {
	src := addrOf(conn.RemoteAddr())
	tenant, ok := p.tenants.Tenant(src.Addr())
	if !ok || tenant.Sandbox == "" {
		p.log.Debug("connection from an address that no sandbox has", "address", src.Addr())
		reset(conn)
		return
	}
	f, err := p.enter(ctx, conn, src.Addr(), tenant)
	if err != nil {
		p.refuseAtOnce(conn, tenant, err)
		return
	}
	p.flows.Go(f.serve)
}

// addrOf returns the address of a TCP socket, with IPv4 as such.
func addrOf(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	addr := tcp.AddrPort()
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// enter makes a flow of a connection.
func (p *Proxy) enter(ctx context.Context, conn *net.TCPConn, src netip.Addr, tenant egress.Tenant) (*flow, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &flow{proxy: p, client: conn, src: src, began: time.Now(), ctx: ctx, cancel: cancel}
	f.box = p.boxes.open(tenant.Sandbox)
	if err := f.box.enter(f, p.limits); err != nil {
		cancel()
		p.boxes.release(f.box)
		return nil, err
	}
	return f, nil
}
