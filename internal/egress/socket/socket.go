// Package socket works with sockets without the net package, for whoever has so
// many of them, or so much on one of them, that a goroutine's waking for each thing
// that happens costs more than what is done with it.
//
// All TCP sockets are non-blocking and no call on them waits: where there is
// nothing to do yet the error is EAGAIN. That is why the scheduler is not told
// about the calls, which would have it look for something else to do meanwhile.
package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KeepAlive finds out that the other side is gone after about two minutes.
func KeepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4}
}

// SetKeepAlive makes KeepAlive hold for a socket, and for those that are accepted
// from it.
func SetKeepAlive(fd int) error {
	c := KeepAlive()
	for _, o := range [...]struct{ level, option, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(c.Idle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(c.Interval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, c.Count},
	} {
		if err := set(fd, o.level, o.option, o.value); err != nil {
			return err
		}
	}
	return nil
}

// SetNoDelay has what is written sent at once, also on connections that are
// accepted from the socket.
func SetNoDelay(fd int) error { return set(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

func set(fd, level, option, value int) error {
	number := int32(value)
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&number)), unsafe.Sizeof(number), 0)
	return failed("setsockopt", errno)
}

// Connect begins a connection over which this side speaks first. Whether it comes
// about shows in the first Write.
func Connect(to netip.AddrPort) (fd int, err error) {
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = errors.Join(SetNoDelay(fd), haste(fd)); err == nil {
		err = connect(fd, to)
	}
	if err != nil {
		Close(fd)
		return -1, err
	}
	return fd, nil
}

// haste has no packet sent only to say that the connection is there: the first
// bytes that are written say so too.
func haste(fd int) error { return set(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) }

func connect(fd int, to netip.AddrPort) error {
	var sa unix.RawSockaddrInet6
	size := unsafe.Sizeof(sa)
	if to.Addr().Is6() {
		sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkOrder(to.Port()), Addr: to.Addr().As16()}
	} else {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa))
		*four = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(to.Port()), Addr: to.Addr().As4()}
		size = unsafe.Sizeof(*four)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), size)
	if errno == unix.EINPROGRESS {
		return nil
	}
	return failed("connect", errno)
}

// networkOrder converts a port to how the kernel has it, and back.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// Accept takes a connection from a listening socket.
func Accept(fd int) (conn int, from netip.AddrPort, err error) {
	var sa unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)),
		uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, from, failed("accept", errno)
	}
	return int(n), AddressIn(&sa), nil
}

// Local returns the address of this end of a connection.
func Local(fd int) (netip.AddrPort, error) {
	var sa unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	return AddressIn(&sa), failed("getsockname", errno)
}

// Original returns where a connection was going before the kernel rewrote its
// destination.
func Original(fd int, six bool) (netip.AddrPort, error) {
	const option = 80 // SO_ORIGINAL_DST of linux/netfilter_ipv4.h, and of its twin for IPv6
	level := unix.IPPROTO_IP
	if six {
		level = unix.IPPROTO_IPV6
	}
	var sa unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), option,
		uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return netip.AddrPort{}, failed("getsockopt", errno)
	}
	addr := AddressIn(&sa)
	if !addr.IsValid() {
		return addr, fmt.Errorf("the kernel answers with address family %d", sa.Family)
	}
	return addr, nil
}

// AddressIn reads a sockaddr_in6, or the sockaddr_in in its place; the zero
// AddrPort is what is neither.
func AddressIn(sa *unix.RawSockaddrInet6) netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), networkOrder(four.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), networkOrder(sa.Port))
	}
	return netip.AddrPort{}
}

// Read reads what is there; 0 bytes are the end.
func Read(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Write writes as much as there is room for. Nobody gets a signal if the other
// side has gone.
func Write(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// End tells the other side that nothing more comes.
func End(fd int) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return failed("shutdown", errno)
}

// Abort resets a connection and leaves the descriptor open, so that others may
// still use it: they see the end.
func Abort(fd int) {
	sa := unix.RawSockaddrInet4{Family: unix.AF_UNSPEC}
	_, _, _ = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa)) // fails on one that has ended
}

// Close closes a descriptor.
func Close(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) } // it is gone in any case

// Conn makes a connection of the net package of a descriptor, which is gone
// then, also if that fails.
func Conn(fd int) (*net.TCPConn, error) {
	file := os.NewFile(uintptr(fd), "connection")
	defer file.Close() // the connection has a descriptor of its own
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("take over a connection: %w", err)
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("take over a connection: it is a %T", conn)
	}
	_ = tcp.SetKeepAliveConfig(KeepAlive()) // the net package has set its own; fails only if it has ended
	return tcp, nil
}

// failed is the error of a system call, nil for number 0.
func failed(call string, errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return os.NewSyscallError(call, errno)
}
