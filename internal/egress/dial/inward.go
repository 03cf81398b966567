package dial

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Inward is a way back into this process: a net.Listener whose connections only
// a Dialer makes, each on behalf of a sandbox, whose address they have as their
// remote one. Whatever else connects to it is reset.
//
// It takes TCP over the loopback interface, so that who dials and who serves need
// not know of each other.
type Inward struct {
	listener *net.TCPListener

	mu       sync.Mutex
	expected map[netip.AddrPort]netip.Addr // sandboxes, by the address they are dialled from; guarded by mu
}

// NewInward returns an open way. The server that it is given to closes it.
func NewInward() (*Inward, error) {
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: loopback.AsSlice()})
	if err != nil {
		return nil, fmt.Errorf("open a way from the dialler inwards: %w", err)
	}
	return &Inward{listener: listener, expected: make(map[netip.AddrPort]netip.Addr)}, nil
}

// loopback is where both ends of these connections are.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// dial connects on behalf of a sandbox.
func (w *Inward) dial(ctx context.Context, src netip.Addr) (*net.TCPConn, error) {
	var from netip.AddrPort
	// The address to connect from is known before the other end can see it.
	dialer := net.Dialer{KeepAlive: -1, ControlContext: func(_ context.Context, _, _ string, raw syscall.RawConn) error {
		var failed error
		if err := raw.Control(func(fd uintptr) { from, failed = bindLoopback(int(fd)) }); err != nil {
			return err
		}
		if failed == nil {
			w.expect(from, src)
		}
		return failed
	}}
	conn, err := dialer.DialContext(ctx, "tcp4", w.listener.Addr().String())
	if err != nil {
		w.take(from) // the other end, if there is one, is nobody's
		return nil, err
	}
	return conn.(*net.TCPConn), nil // what dialling "tcp4" gives
}

// bindLoopback gives a socket a free port and returns it.
func bindLoopback(fd int) (netip.AddrPort, error) {
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback.As4()}); err != nil {
		return netip.AddrPort{}, os.NewSyscallError("bind", err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	at, ok := bound.(*unix.SockaddrInet4)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("a socket is bound to a %T", bound)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)), nil
}

func (w *Inward) expect(from netip.AddrPort, src netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected[from] = src
}

// take returns on whose behalf somebody connects from an address, once.
func (w *Inward) take(from netip.AddrPort) (src netip.Addr, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	src, ok = w.expected[from]
	delete(w.expected, from)
	return src, ok
}

// Accept implements net.Listener.
func (w *Inward) Accept() (net.Conn, error) {
	for {
		conn, err := w.listener.AcceptTCP()
		if err != nil {
			return nil, err
		}
		remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort() // a TCP connection has no other
		remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
		if src, ok := w.take(remote); ok {
			return &inwardConn{TCPConn: conn, remote: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, remote.Port()))}, nil
		}
		_ = conn.SetLinger(0) // a stranger on this machine
		_ = conn.Close()
	}
}

// Close implements net.Listener.
func (w *Inward) Close() error { return w.listener.Close() }

// Addr implements net.Listener.
func (w *Inward) Addr() net.Addr { return w.listener.Addr() }

// inwardConn is a connection as who serves it sees it.
type inwardConn struct {
	*net.TCPConn
	remote net.Addr
}

// RemoteAddr implements net.Conn.
func (c *inwardConn) RemoteAddr() net.Addr { return c.remote }
