package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moat-sandbox/moat/internal/egress/socket"
)

// Listen opens a listener for Serve. Its connections find out within about two
// minutes that the other side is gone.
func Listen(ctx context.Context, addr netip.AddrPort) (*net.TCPListener, error) {
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	lc := net.ListenConfig{KeepAlive: -1, Control: inherited}
	ln, err := lc.Listen(ctx, network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return ln.(*net.TCPListener), nil // what listening on "tcp4" and "tcp6" gives
}

// inherited sets what connections get from their listener, which saves to set it
// for each.
func inherited(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = errors.Join(socket.SetKeepAlive(int(fd)), socket.SetNoDelay(int(fd)))
	})
	return errors.Join(err, failed)
}

// Serve takes the listeners over and accepts connections until ctx ends. Then it
// resets what is still open and waits for that. It may be called once.
func (p *Proxy) Serve(ctx context.Context, listeners ...*net.TCPListener) error {
	lanes, err := p.openLanes(listeners)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range lanes {
		group.Go(func() error { return l.run(ctx) })
	}
	group.Go(func() error { return p.serveHTTP2(ctx) })
	err = group.Wait()
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

// isPassing reports whether accepting may work again later.
func isPassing(err error) bool {
	for _, passing := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}
