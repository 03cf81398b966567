// Package handover gives connections that were accepted, and perhaps read from,
// elsewhere to a server that expects a net.Listener.
package handover

import (
	"net"
	"sync"
)

// Listener is a net.Listener whose connections are given to it. It is safe for
// concurrent use.
type Listener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// New returns an open listener.
func New() *Listener {
	return &Listener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// Give waits until somebody accepts a connection and reports whether that was
// so. If not, because the listener is closed, the connection is the caller's.
func (l *Listener) Give(conn net.Conn) bool {
	select {
	case l.conns <- conn:
		return true
	case <-l.done:
		return false
	}
}

// Accept implements net.Listener. The error is net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It may be called again.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return address{} }

type address struct{}

func (address) Network() string { return "internal" }
func (address) String() string  { return "handover" }
