package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// drainTimeout is how long requests in flight may take when the server stops.
const drainTimeout = 5 * time.Second

// listeners are the open doors of the server, bound before anything else is
// done, so that a port in use is found out at once.
type listeners struct {
	http, https, operator net.Listener
	metrics               net.Listener
	certificates          certificates // of https
	secure                *tls.Config  // of https; nil without
	home                  home
}

// public returns the listeners of public URLs, each of which may be nil, by what
// is spoken there.
func (l *listeners) public() map[uint16]net.Listener {
	return map[uint16]net.Listener{policy.PortHTTP: l.http, policy.PortHTTPS: l.https}
}

func listen(c Config) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if c.HTTP != "" {
		if l.http, err = ingress.Listen(c.HTTP); err != nil {
			return nil, fmt.Errorf("http: %w", err)
		}
	}
	if c.HTTPS != "" {
		if l.certificates, err = openCertificates(c); err != nil {
			return nil, err
		}
		l.secure = &tls.Config{
			GetCertificate: l.certificates.get,
			NextProtos:     []string{"h2", "http/1.1"},
			MinVersion:     tls.VersionTLS12,
		}
		if l.https, err = ingress.ListenTLS(c.HTTPS, l.secure); err != nil {
			return nil, fmt.Errorf("https: %w", err)
		}
	}
	if c.Metrics != "" {
		if l.metrics, err = net.Listen("tcp", c.Metrics); err != nil {
			return nil, fmt.Errorf("listen for metrics: %w", err)
		}
	}
	if l.home, err = openHome(c, l); err != nil {
		return nil, err
	}
	if l.operator, err = listenOperator(filepath.Join(c.DataDir, SocketName)); err != nil {
		return nil, err
	}
	return l, nil
}

// listenOperator opens the operator's socket. The caller holds the store, so a
// socket file that is already there belongs to a server that is gone.
func listenOperator(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale operator socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on operator socket: %w", err)
	}
	// The directory is closed to others, so nobody gets in before this.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect operator socket: %w", err), l.Close())
	}
	return l, nil
}

func (l *listeners) close() {
	for _, each := range []net.Listener{l.http, l.https, l.metrics, l.operator} {
		if each != nil {
			_ = each.Close()
		}
	}
	l.home.close()
}

// server answers on one listener.
type server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
	Close() error
}

// serve answers on every listener until ctx ends, lets requests in flight
// finish for a moment and cuts what is left.
func (l *listeners) serve(ctx context.Context, in doors, metrics *metrics) error {
	renewals, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	if issuer := l.certificates.issuer; issuer != nil {
		background.Go(func() { _ = issuer.Run(renewals) }) // it ends when it is told to
	}

	servers := map[net.Listener]server{l.operator: in.operator.Server()}
	for _, listener := range []net.Listener{l.http, l.https} {
		if listener != nil {
			servers[listener] = in.public.Server()
		}
	}
	for _, listener := range l.home.listeners(l.secure) {
		servers[listener] = in.inside.Server()
	}
	if l.metrics != nil {
		servers[l.metrics] = metrics.server()
	}
	return serveAll(ctx, servers)
}

func serveAll(ctx context.Context, servers map[net.Listener]server) error {
	ended := make(chan error, len(servers))
	for listener, server := range servers {
		go func() { ended <- server.Serve(listener) }()
	}
	var errs []error
	pending := len(servers)
	select {
	case <-ctx.Done():
	case err := <-ended: // a listener broke: the others must not go on without it
		errs = append(errs, err)
		pending--
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	for _, server := range servers {
		if err := server.Shutdown(drain); err != nil {
			errs = append(errs, server.Close())
		}
	}
	for range pending {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
