package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
)

const (
	// maxStreams is how many requests may be under way on a connection.
	maxStreams = 250
	// maxHeader is how long the header of a request may be over HTTP/2, in bytes.
	maxHeader = 64 << 10
)

// flowKey is where the context of a request has its flow.
type flowKey struct{}

// newHTTP2 returns what serves HTTP/2 on connections that are looked into. It
// does not tell clients that they can open WebSockets over it (RFC 8441), so they
// open those over HTTP/1.1: net/http can only tell it for the whole process, and
// browsers would then expect the same of public URLs.
func newHTTP2(logger *slog.Logger) *http.Server {
	s := &http.Server{
		Handler:                      http.HandlerFunc(serveStream),
		Protocols:                    new(http.Protocols),
		IdleTimeout:                  idleTime,
		MaxHeaderBytes:               maxHeader,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: receiveBuffer},
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(debugLog{logger}, "", 0),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if secure, ok := conn.(*tls.Conn); ok {
				if below, ok := secure.NetConn().(*opened); ok {
					return context.WithValue(ctx, flowKey{}, below.flow)
				}
			}
			return ctx // serveStream refuses its requests
		},
	}
	s.Protocols.SetHTTP2(true)
	return s
}

// debugLog takes what net/http has to say of clients that misbehave.
type debugLog struct{ *slog.Logger }

func (l debugLog) Write(p []byte) (int, error) {
	l.Debug("http2", "what", string(p))
	return len(p), nil
}

// serveHTTP2 serves connections that are handed over until ctx ends.
func (p *Proxy) serveHTTP2(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.rest.Close() })
	defer stop()
	err := p.http2.Serve(p.rest)
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("proxy: serve HTTP/2: %w", err)
}
