package socket_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/socket"
)

// pair returns both ends of a connection over the loopback: a descriptor, and
// the other end in the net package.
func pair(t *testing.T, network, addr string) (fd int, other *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	if fd, err = socket.Connect(to); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	local, err := socket.Local(fd)
	if err != nil || local != conn.RemoteAddr().(*net.TCPAddr).AddrPort() {
		t.Errorf("the local address is %v, %v; the other side says %v", local, err, conn.RemoteAddr())
	}
	return fd, conn.(*net.TCPConn)
}

// write writes all of a text that there is room for, once there is a connection.
func write(t *testing.T, fd int, text string) {
	t.Helper()
	n, err := 0, error(unix.EAGAIN)
	for errors.Is(err, unix.EAGAIN) {
		n, err = socket.Write(fd, []byte(text))
	}
	if n != len(text) || err != nil {
		t.Fatalf("%d bytes written, %v", n, err)
	}
}

func TestBothFamilies(t *testing.T) {
	for network, addr := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		fd, other := pair(t, network, addr)
		write(t, fd, "hello")
		if err := socket.End(fd); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(other); string(got) != "hello" || err != nil {
			t.Errorf("%s: %q, %v", network, got, err)
		}
		page := make([]byte, 10)
		if _, err := socket.Read(fd, page); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("%s: reading what is not there gives %v", network, err)
		}
		other.Close()
		n, err := 0, error(unix.EAGAIN)
		for errors.Is(err, unix.EAGAIN) {
			n, err = socket.Read(fd, page)
		}
		if n != 0 || err != nil {
			t.Errorf("%s: %d, %v at the end", network, n, err)
		}
		socket.Close(fd)
	}
}

func TestRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // nobody listens there now
	fd, err := socket.Connect(ln.Addr().(*net.TCPAddr).AddrPort())
	for err == nil || errors.Is(err, unix.EAGAIN) {
		_, err = socket.Write(fd, []byte("x"))
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}

// An abort is a reset for the other side, and leaves the descriptor in place.
func TestAbort(t *testing.T) {
	fd, other := pair(t, "tcp4", "127.0.0.1:0")
	write(t, fd, "hello")
	if _, err := io.ReadFull(other, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	socket.Abort(fd)
	if _, err := other.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the other side sees %v", err)
	}
	if n, err := socket.Read(fd, make([]byte, 1)); n > 0 || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EBADF) {
		t.Errorf("this side reads %d bytes, %v", n, err)
	}
	socket.Close(fd)
}

// Accept gives connections with their address, and Conn makes of each what the
// net package works with.
func TestAcceptAndConn(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	var from netip.AddrPort
	var failed error
	for failed = unix.EAGAIN; errors.Is(failed, unix.EAGAIN); {
		if err := raw.Control(func(listener uintptr) { fd, from, failed = socket.Accept(int(listener)) }); err != nil {
			t.Fatal(err)
		}
	}
	if failed != nil {
		t.Fatal(failed)
	}
	if from.String() != client.LocalAddr().String() {
		t.Errorf("it comes from %v, not %v", from, client.LocalAddr())
	}
	if _, err := socket.Original(fd, false); err == nil {
		t.Error("a connection that nobody redirected has an original destination")
	}
	before := descriptors(t)
	conn, err := socket.Conn(fd)
	if err != nil {
		t.Fatal(err)
	}
	if now := descriptors(t); now != before {
		t.Errorf("%d descriptors, %d before", now, before)
	}
	client.Write([]byte("hello"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	control, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	control.Control(func(fd uintptr) {
		idle, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
		if want := int(socket.KeepAlive().Idle.Seconds()); idle != want || err != nil {
			t.Errorf("kept alive after %d s, %v, want %d", idle, err, want)
		}
	})
	conn.Close()
	if now := descriptors(t); now != before-1 {
		t.Errorf("%d descriptors are left of %d", now, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
