package ingress

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"time"
)

// answer is a client's end of one exchange. It lets the upstream break the
// exchange off, and passes the sandbox's answer on without additions.
type answer struct {
	http.ResponseWriter
	up *upstream

	begun  bool     // a final status was sent; guarded by up.mu
	client net.Conn // set once the connection is upgraded; guarded by up.mu
}

// Unwrap lets http.ResponseController reach the server's own writer.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if status == http.StatusContinue {
		return // net/http says it as soon as the body is read, which is now
	}
	if status >= http.StatusOK {
		// net/http guesses a type for answers that name none. The app's
		// silence may be deliberate.
		if h := a.Header(); len(h["Content-Type"]) == 0 {
			h["Content-Type"] = nil
		}
		a.begin()
	}
	a.ResponseWriter.WriteHeader(status)
}

// begin notes that from now on the client can only be told of an end by
// breaking off.
func (a *answer) begin() {
	a.up.mu.Lock()
	defer a.up.mu.Unlock()
	a.begun = true
	if a.up.ended {
		a.cut()
	}
}

// cut breaks the exchange off, whatever it is waiting for. An answer that has
// not begun is left alone: its handler can still say what happened. Called
// with up.mu held, and never after the handler has returned.
func (a *answer) cut() {
	switch {
	case a.client != nil:
		reset(a.client)
	case a.begun:
		// A client that has stopped reading must not hold the handler up. An
		// error here means that the connection has already failed.
		_ = http.NewResponseController(a.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
}

// Hijack implements http.Hijacker for upgraded connections.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	a.up.mu.Lock()
	defer a.up.mu.Unlock()
	a.client = conn
	if a.up.ended {
		reset(conn)
		return nil, nil, errEnded
	}
	if rw.Reader.Buffered() == 0 {
		return conn, rw, nil
	}
	return &eagerConn{Conn: conn, rest: rw.Reader}, rw, nil
}

// upgraded reports whether the connection no longer speaks HTTP.
func (a *answer) upgraded() bool {
	a.up.mu.Lock()
	defer a.up.mu.Unlock()
	return a.client != nil
}

// abandon makes sure that a broken answer does not look complete. Over
// HTTP/1.0 the end of the connection is the end of the body, so it is reset;
// later versions show by their framing that something is missing.
func (a *answer) abandon(r *http.Request) {
	if r.ProtoAtLeast(1, 1) {
		return
	}
	if conn, _, err := http.NewResponseController(a.ResponseWriter).Hijack(); err == nil {
		reset(conn)
	}
}

// eagerConn is an upgraded connection whose client did not wait for the
// answer: what it already sent sits in the server's buffer.
type eagerConn struct {
	net.Conn
	rest *bufio.Reader
}

func (c *eagerConn) Read(p []byte) (int, error) {
	if n := c.rest.Buffered(); n > 0 {
		return c.rest.Read(p[:min(n, len(p))])
	}
	return c.Conn.Read(p)
}

// CloseWrite passes half-closing on, which Conn's type does not promise.
func (c *eagerConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
