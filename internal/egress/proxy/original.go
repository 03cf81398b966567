package proxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Option numbers of linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h.
const (
	soOriginalDst  = 80
	ip6OriginalDst = 80
)

// kernelDestination asks the kernel where a connection was going before its
// destination was rewritten.
func kernelDestination(conn *net.TCPConn) (dst netip.AddrPort, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return dst, err
	}
	level, option := unix.IPPROTO_IP, soOriginalDst
	if addrOf(conn.LocalAddr()).Addr().Is6() {
		level, option = unix.IPPROTO_IPV6, ip6OriginalDst
	}
	var failed error
	err = raw.Control(func(fd uintptr) { dst, failed = originalDst(fd, level, option) })
	if err == nil {
		err = failed
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask for the original destination: %w", err)
	}
	return dst, nil
}

// originalDst reads a sockaddr_in or sockaddr_in6. Both begin with the family
// and the port.
func originalDst(fd uintptr, level, option int) (netip.AddrPort, error) {
	var sa [unix.SizeofSockaddrInet6]byte
	size := uint32(len(sa))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt", errno)
	}
	port := binary.BigEndian.Uint16(sa[2:])
	switch family := binary.NativeEndian.Uint16(sa[:]); family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), port), nil
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(sa[8:24])), port), nil
	default:
		return netip.AddrPort{}, fmt.Errorf("the kernel answers with address family %d", family)
	}
}
