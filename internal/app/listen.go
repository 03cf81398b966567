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
)

// drainTimeout is how long requests in flight may take when the server stops.
const drainTimeout = 5 * time.Second

// listeners are the open doors of the server, bound before anything else is
// done, so that a port in use is found out at once.
type listeners struct {
	http, https, operator net.Listener
	certificates          certificates // of https
}

func listen(c Config) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if c.HTTP != "" {
		if l.http, err = net.Listen("tcp", c.HTTP); err != nil {
			return nil, fmt.Errorf("listen for http: %w", err)
		}
	}
	if c.HTTPS != "" {
		if l.certificates, err = openCertificates(c); err != nil {
			return nil, err
		}
		plain, err := net.Listen("tcp", c.HTTPS)
		if err != nil {
			return nil, fmt.Errorf("listen for https: %w", err)
		}
		l.https = tls.NewListener(plain, &tls.Config{
			GetCertificate: l.certificates.get,
			NextProtos:     []string{"h2", "http/1.1"},
			MinVersion:     tls.VersionTLS12,
		})
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
	for _, each := range []net.Listener{l.http, l.https, l.operator} {
		if each != nil {
			_ = each.Close()
		}
	}
}

// serve answers on every listener until ctx ends, lets requests in flight
// finish for a moment and cuts what is left.
func (l *listeners) serve(ctx context.Context, public, operator *ingress.Ingress) error {
	type door struct {
		listener net.Listener
		server   *ingress.Server
	}
	var doors []door
	add := func(listener net.Listener, in *ingress.Ingress) {
		if listener != nil {
			doors = append(doors, door{listener, in.Server()})
		}
	}
	add(l.http, public)
	add(l.https, public)
	add(l.operator, operator)

	renewals, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	if issuer := l.certificates.issuer; issuer != nil {
		background.Go(func() { _ = issuer.Run(renewals) }) // it ends when it is told to
	}

	ended := make(chan error, len(doors))
	for _, d := range doors {
		go func() { ended <- d.server.Serve(d.listener) }()
	}
	var errs []error
	pending := len(doors)
	select {
	case <-ctx.Done():
	case err := <-ended: // a listener broke: the others must not go on without it
		errs = append(errs, err)
		pending--
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	for _, d := range doors {
		if err := d.server.Shutdown(drain); err != nil {
			errs = append(errs, d.server.Close())
		}
	}
	for range pending {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
