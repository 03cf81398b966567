package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// rehearseAfter is how long nobody must have claimed a sandbox before it
// rehearses: one that is claimed at once has no time for that.
const rehearseAfter = 100 * time.Millisecond

// rehearse makes a sandbox that waits for its owner do once what its owner will
// wait for.
func (s *Server) rehearse(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(rehearseAfter):
	}
	if s.sessions.Get() != nil {
		return
	}
	err := errors.Join(s.process.Rehearse(ctx), s.askSelf(ctx))
	if err != nil {
		s.config.Log.Debug("not rehearsed: the first command may be slow", "error", err)
		return
	}
	s.config.Log.Debug("rehearsed")
}

// askSelf makes one request over the loopback interface.
func (s *Server) askSelf(ctx context.Context) error {
	var dialer net.Dialer
	_, port, err := net.SplitHostPort(s.Addr().String())
	if err != nil {
		return err
	}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprint(conn, "GET /health HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}
