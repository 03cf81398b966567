package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// A client that is silent for probeAfter is asked whether it is still there, and
// given up after probes questions, probeAfter apart.
const (
	probeAfter = 15 * time.Second
	probes     = 9
)

// Listen opens a TCP listener for a Server. What Go would set on every
// connection, they inherit from the listener, which spares new ones four calls.
func Listen(address string) (net.Listener, error) {
	config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = keepAlive(int(fd)) }), err)
	}}
	config.SetMultipathTCP(false) // nobody asked for it, and each accept would pay
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// ListenTLS opens a listener like Listen, for TLS.
func ListenTLS(address string, config *tls.Config) (net.Listener, error) {
	l, err := Listen(address)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(quickListener{l}, config), nil
}

// quickListener accepts connections that are read and written by a socket of
// ours, which package tls would not know of.
type quickListener struct{ net.Listener }

// Accept implements net.Listener.
func (l quickListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	quick := &quickConn{TCPConn: conn.(*net.TCPConn), socket: newSocket()} // what Listen accepts
	if err := quick.socket.attach(quick.TCPConn); err != nil {
		return conn, nil // it is closed already, which its reader will see
	}
	return quick, nil
}

type quickConn struct {
	*net.TCPConn
	socket *socket
}

func (c *quickConn) Read(p []byte) (int, error)  { return c.socket.Read(p) }
func (c *quickConn) Write(p []byte) (int, error) { return c.socket.Write(p) }

func keepAlive(fd int) error {
	const seconds = int(probeAfter / time.Second)
	return errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, seconds),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, seconds),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, probes),
	)
}
