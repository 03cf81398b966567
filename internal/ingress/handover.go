package ingress

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
)

// handover is the listener from which net/http gets the connections that begin
// otherwise than plainly.
type handover struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), done: make(chan struct{})}
}

// give hands a connection over, with what has been read from it already. It
// reports whether somebody took it.
func (h *handover) give(conn net.Conn, early []byte) bool {
	if len(early) > 0 {
		back := begun{Conn: conn, early: early}
		conn = &back
		if secure, ok := back.Conn.(*tls.Conn); ok {
			conn = &begunTLS{begun: back, state: secure.ConnectionState()}
		}
	}
	select {
	case h.conns <- conn:
		return true
	case <-h.done:
		return false
	}
}

// Accept implements net.Listener.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handover) Addr() net.Addr { return handoverAddr{} }

type handoverAddr struct{}

func (handoverAddr) Network() string { return "internal" }
func (handoverAddr) String() string  { return "handover" }

// begun is a connection of which something was read already.
type begun struct {
	net.Conn
	early []byte
}

func (c *begun) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// NetConn returns the connection beneath.
func (c *begun) NetConn() net.Conn { return c.Conn }

// CloseWrite passes half-closing on, which Conn's type does not promise.
func (c *begun) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// begunTLS tells net/http what it cannot see through begun.
type begunTLS struct {
	begun
	state tls.ConnectionState
}

// ConnectionState is what requests have as their TLS.
func (c *begunTLS) ConnectionState() tls.ConnectionState { return c.state }
