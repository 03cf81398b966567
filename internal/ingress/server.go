package ingress

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

const (
	// headerTimeout is all the time a client has to send a request's headers.
	headerTimeout = 15 * time.Second
	// idleTime is longer than what load balancers (600 s) and the SDKs (300 s)
	// keep a connection, so that it is not us who close it under a request.
	idleTime   = 620 * time.Second
	maxHeaders = 64 << 10 // bytes
	// A silent HTTP/2 client is asked whether it is still there.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
)

// Server returns a server for any number of plain and TLS listeners. It speaks
// HTTP/1.1 and HTTP/2 on both. Only the headers of a request have a deadline:
// bodies and answers may take as long as they need.
func (in *Ingress) Server() *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           in,
		Protocols:         &protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeaders,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		// "OPTIONS *" belongs to the app that is asked.
		DisableGeneralOptionsHandler: true,
		ConnState:                    in.clients.watch,
		ErrorLog:                     log.New(serverLog{in.log}, "", 0),
	}
}

// serverLog gives net/http's messages a level: what a stranger can provoke by
// connecting badly must not fill the log.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	level := slog.LevelWarn
	if bytes.Contains(line, []byte("TLS handshake error")) {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, string(bytes.TrimSpace(line)))
	return len(line), nil
}

// bufferPool lends the buffers through which answers stream. The zero value is
// ready to use.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 32 << 10 // bytes

// Get implements httputil.BufferPool.
func (p *bufferPool) Get() []byte {
	if buf, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return buf[:]
	}
	return make([]byte, bufferSize)
}

// Put implements httputil.BufferPool.
func (p *bufferPool) Put(buf []byte) { p.pool.Put((*[bufferSize]byte)(buf)) }
