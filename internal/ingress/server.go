package ingress

import (
	"bytes"
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moat-sandbox/moat/internal/handover"
)

const (
	// idleTime is longer than what load balancers (600 s) and the SDKs (300 s)
	// keep a connection, so that it is not us who close it under a request.
	idleTime = 620 * time.Second
	// A silent HTTP/2 client is asked whether it is still there.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	// When there are no file descriptors left, accepting pauses.
	acceptPause = 50 * time.Millisecond
)

// Server serves an Ingress on any number of plain and TLS listeners. It speaks
// HTTP/1.1 and HTTP/2 on both. Only the headers of a request have a deadline:
// bodies and answers may take as long as they need.
//
// It has two halves. Each connection begins with a caller of ours, which passes
// on plain HTTP/1.1 requests that are let in, as most are. The first request
// that is anything else goes, with the connection, to net/http, and from there
// to ServeHTTP; so nothing depends on which half a request meets but its speed.
type Server struct {
	in   *Ingress
	http *http.Server
	rest *handover.Listener // from the first half to the second

	start   sync.Once
	closing atomic.Bool // set with mu held

	mu        sync.Mutex
	listeners map[net.Listener]struct{} // guarded by mu
	callers   map[*caller]struct{}      // guarded by mu
	left      chan struct{}             // holds a value after a caller has left

	spaces sync.Pool // of *space
}

// Server returns a server.
func (in *Ingress) Server() *Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &Server{
		in: in,
		http: &http.Server{
			Handler:           in,
			Protocols:         &protocols,
			ReadHeaderTimeout: in.headerTimeout,
			IdleTimeout:       idleTime,
			MaxHeaderBytes:    in.maxHeader,
			HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
			// "OPTIONS *" belongs to the app that is asked.
			DisableGeneralOptionsHandler: true,
			ConnState:                    in.clients.watch,
			ErrorLog:                     log.New(serverLog{in.log}, "", 0),
		},
		rest:      handover.New(),
		listeners: make(map[net.Listener]struct{}),
		callers:   make(map[*caller]struct{}),
		left:      make(chan struct{}, 1),
		spaces:    sync.Pool{New: newSpace},
	}
}

// Serve accepts connections until the listener fails or the server ends; then
// the error is http.ErrServerClosed. What a TLS listener's configuration offers
// as protocols should be "h2" and "http/1.1". It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer s.shut(l)
	if s.closing.Load() {
		return http.ErrServerClosed
	}
	// It ends when the handover is closed, which is how its server ends.
	s.start.Do(func() { go s.http.Serve(s.rest) })
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			s.meet(conn)
		case s.closing.Load():
			return http.ErrServerClosed
		case isTemporary(err):
			s.in.log.Warn("accept connection", "err", err)
			time.Sleep(acceptPause)
		default:
			return err
		}
	}
}

// shut closes a listener, once.
func (s *Server) shut(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.listeners[l]; open {
		delete(s.listeners, l)
		_ = l.Close() // nothing can be done about an error
	}
}

// isTemporary reports whether accepting may work again later.
func isTemporary(err error) bool {
	var maybe interface{ Temporary() bool }
	return errors.As(err, &maybe) && maybe.Temporary()
}

// meet begins to serve a connection.
func (s *Server) meet(conn net.Conn) {
	if !s.in.clients.enter() {
		reset(conn)
		return
	}
	c := newCaller(s, conn)
	s.mu.Lock()
	if s.closing.Load() {
		s.mu.Unlock()
		s.in.clients.leave()
		_ = conn.Close() // was not told anything yet
		return
	}
	s.callers[c] = struct{}{}
	s.mu.Unlock()
	go func() {
		defer s.part(c)
		c.serve()
	}()
}

// part forgets a caller that has ended.
func (s *Server) part(c *caller) {
	s.mu.Lock()
	delete(s.callers, c)
	s.mu.Unlock()
	if c.space != nil {
		c.tokens.Header, c.said = nil, nil // no token outlives its connection
		s.spaces.Put(c.space)
		c.space = nil
	}
	select {
	case s.left <- struct{}{}:
	default:
	}
}

// stop closes the listeners and calls f for each caller.
func (s *Server) stop(f func(*caller)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing.Store(true)
	for l := range s.listeners {
		_ = l.Close() // nothing can be done about an error
	}
	clear(s.listeners)
	for c := range s.callers {
		f(c)
	}
}

// Shutdown stops accepting, closes idle connections and waits for requests
// under way, but no longer than for ctx. Upgraded connections are not waited
// for.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop((*caller).finishUp)
	err := s.http.Shutdown(ctx)
	for {
		s.mu.Lock()
		n := len(s.callers)
		s.mu.Unlock()
		if n == 0 {
			return err
		}
		select {
		case <-s.left:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends everything at once.
func (s *Server) Close() error {
	s.stop((*caller).abandon)
	return s.http.Close()
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
