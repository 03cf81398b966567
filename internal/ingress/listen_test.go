package ingress

import (
	"net"
	"syscall"
	"testing"
)

// Connections have what the listener says, or a client whose network fails
// would be waited for for ever.
func TestConnectionsAreProbed(t *testing.T) {
	ln, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ level, option, want int }{
		{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 15},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 15},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 9},
		{syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1},
	} {
		err := raw.Control(func(fd uintptr) {
			if got, err := syscall.GetsockoptInt(int(fd), x.level, x.option); err != nil || got != x.want {
				t.Errorf("option %d/%d is %d, want %d, %v", x.level, x.option, got, x.want, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Listen("127.0.0.1:-1"); err == nil {
		t.Error("listens on port -1")
	}
}
