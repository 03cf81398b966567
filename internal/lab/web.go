package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Request is one HTTP request that reached the internet.
type Request struct {
	At   time.Time
	From netip.AddrPort
	// To is the public address that was asked.
	To netip.AddrPort
	// ServerName is the name in the TLS handshake; empty over plain HTTP.
	ServerName string
	TLS        bool
	Proto      string // "HTTP/1.1", "HTTP/2.0"
	Method     string
	Host       string
	Path       string
	Header     http.Header
}

// web serves one site on ports 80 and 443 of every public address, whatever
// the name.
type web struct {
	seen    seen[Request]
	servers []*http.Server
	running sync.WaitGroup
}

func startWeb(internet *Space, ca *authority, names *nameserver, log *slog.Logger) (*web, error) {
	w := &web{}
	site := newSite()
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.seen.add(describe(r))
		site.ServeHTTP(rw, r)
	})
	for _, port := range []string{"80", "443"} {
		ln, err := internet.Listen("tcp", ":"+port)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve HTTP: %w", err), w.Close())
		}
		s := &http.Server{
			Handler:  handler,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
			TLSConfig: &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				return certificateFor(hello, ca, names)
			}},
		}
		w.servers = append(w.servers, s)
		serve := func() error { return s.Serve(ln) }
		if port == "443" {
			serve = func() error { return s.ServeTLS(ln, "", "") }
		}
		w.running.Go(func() {
			if err := serve(); !errors.Is(err, http.ErrServerClosed) {
				log.Error("lab web server ended", "port", port, "error", err)
			}
		})
	}
	return w, nil
}

// certificateFor issues for the names that the zone has, and for the address
// that was dialled when the client names none.
func certificateFor(hello *tls.ClientHelloInfo, ca *authority, names *nameserver) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "" {
		return ca.leaf([]string{addrPort(hello.Conn.LocalAddr()).Addr().String()})
	}
	if !names.knows(name) {
		return nil, fmt.Errorf("no site is called %q", name)
	}
	return ca.leaf([]string{name})
}

func describe(r *http.Request) Request {
	seen := Request{
		At:     time.Now(),
		Proto:  r.Proto,
		Method: r.Method,
		Host:   r.Host,
		Path:   r.URL.RequestURI(),
		Header: r.Header.Clone(),
	}
	seen.From, _ = netip.ParseAddrPort(r.RemoteAddr)
	seen.From = netip.AddrPortFrom(seen.From.Addr().Unmap(), seen.From.Port())
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		seen.To = addrPort(local)
	}
	if r.TLS != nil {
		seen.TLS, seen.ServerName = true, r.TLS.ServerName
	}
	return seen
}

// Close cuts all connections and waits for the servers' end. Handlers see
// their request's context end.
func (w *web) Close() error {
	var err error
	for _, s := range w.servers {
		err = errors.Join(err, s.Close())
	}
	w.running.Wait()
	return err
}

// pause waits for d, or until ctx ends; it reports whether d has passed.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
