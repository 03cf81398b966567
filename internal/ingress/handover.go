package ingress

import (
	"crypto/tls"
	"errors"
	"net"
)

// handOver gives net/http a connection that begins otherwise than plainly, with
// what has been read from it already. It reports whether it was taken.
func (s *Server) handOver(conn net.Conn, early []byte) bool {
	if len(early) > 0 {
		back := begun{Conn: conn, early: early}
		conn = &back
		if secure, ok := back.Conn.(*tls.Conn); ok {
			conn = &begunTLS{begun: back, state: secure.ConnectionState()}
		}
	}
	return s.rest.Give(conn)
}

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
