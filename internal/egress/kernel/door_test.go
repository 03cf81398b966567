package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// In these tests servers stand behind the doors that say who answered, whom and
// in whose place: "proxy SOURCE ORIGINAL".

const example4, example6 = "93.184.216.34", "2606:2800:220:1::1"

// names is a policy under which everything but one name is denied.
func names(t testing.TB, allowed ...string) *policy.Policy {
	t.Helper()
	return compile(t, policy.Document{AllowOut: append([]string{"example.com"}, allowed...)})
}

// mention returns a rule that changes nothing, strict one for which requests have
// to be seen, upstream a proxy that has to carry all connections.
func mention() policy.Rules {
	return policy.Rules{Hosts: []policy.HostRule{{Host: "example.com"}}}
}

func strict() policy.Rules {
	return policy.Rules{Hosts: []policy.HostRule{{Host: "example.com", Strict: true}}}
}

func upstream() *policy.EgressProxy { return &policy.EgressProxy{Address: "proxy.example.com:1080"} }

// openDoors serves behind all doors until the test is over or close is called.
func openDoors(t *testing.T, n *Network) (close func()) {
	t.Helper()
	var closers []io.Closer
	for network, a := range map[string]netip.Addr{"4": n.doors.Addr4, "6": n.doors.Addr6} {
		for what, port := range map[string]uint16{"proxy": n.doors.Proxy, "resolver": n.doors.Resolver} {
			ln, err := net.Listen("tcp"+network, netip.AddrPortFrom(a, port).String())
			if err != nil {
				t.Fatal(err)
			}
			closers = append(closers, ln)
			go answerStreams(ln, what)
		}
		conn, err := net.ListenPacket("udp"+network, netip.AddrPortFrom(a, n.doors.Resolver).String())
		if err != nil {
			t.Fatal(err)
		}
		closers = append(closers, conn)
		go answerDatagrams(conn)
	}
	close = func() {
		for _, c := range closers {
			_ = c.Close() // twice, if the test has done it
		}
	}
	t.Cleanup(close)
	return close
}

// answerStreams introduces itself and then echoes.
func answerStreams(ln net.Listener, what string) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			src := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
			fmt.Fprintf(conn, "%s %v %v\n", what, src, originalOf(conn.(*net.TCPConn)))
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func answerDatagrams(conn net.PacketConn) {
	buf := make([]byte, 512)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		src := from.(*net.UDPAddr).AddrPort().Addr()
		_, _ = conn.WriteTo(fmt.Appendf(nil, "resolver %v\n", src), from) // who misses it fails the test
	}
}

// originalOf asks the kernel where a connection was going. The calls are meant
// for other options, but these answers fit into them.
func originalOf(conn *net.TCPConn) (dst netip.AddrPort) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return dst
	}
	const originalDst = 80
	_ = raw.Control(func(fd uintptr) {
		if conn.LocalAddr().(*net.TCPAddr).IP.To4() != nil {
			if m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, originalDst); err == nil {
				sa := m.Multiaddr
				dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), binary.BigEndian.Uint16(sa[2:]))
			}
			return
		}
		if m, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, originalDst); err == nil {
			port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, m.Addr.Port))
			dst = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), port)
		}
	})
	return dst
}

// serveInternet says "internet" on a port of every address out there.
func serveInternet(t *testing.T, port int) {
	t.Helper()
	err := inNamespace(internetNS, func() error {
		for _, network := range []string{"4", "6"} {
			ln, err := net.Listen("tcp"+network, fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = ln.Close() })
			go answerStreams(ln, "internet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// visit connects to a port from inside a slot and returns who answered, or how
// it was refused. The connection stays open.
func visit(t *testing.T, s Slot, network, host string, port uint16) (who string, _ net.Conn) {
	t.Helper()
	var dialled net.Conn
	err := inNamespace(s.NetNS, func() (err error) {
		dialled, err = net.DialTimeout(network, netip.AddrPortFrom(addr(host), port).String(), patience)
		return err
	})
	if err != nil {
		return refusal(err), nil
	}
	t.Cleanup(func() { _ = dialled.Close() })
	if err := dialled.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if network == "udp" {
		if _, err := dialled.Write([]byte("who?")); err != nil {
			t.Fatal(err)
		}
	}
	who, err = readLine(dialled)
	if err != nil {
		return refusal(err), nil
	}
	return who, dialled
}

func readLine(conn net.Conn) (string, error) {
	buf := make([]byte, 256)
	n, err := conn.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

// refusal names how an attempt failed.
func refusal(err error) string {
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		return string(reset)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EHOSTUNREACH):
		return string(prohibited)
	case isTimeout(err):
		return string(silence)
	}
	return err.Error()
}

// wantVisit checks who answers.
func wantVisit(t *testing.T, s Slot, network, host string, port uint16, want string) net.Conn {
	t.Helper()
	who, conn := visit(t, s, network, host, port)
	if who != want {
		t.Errorf("%s to %s port %d: %q answers, want %q", network, host, port, who, want)
	}
	return conn
}

// byProxy is what the proxy says to a slot that was going somewhere.
func byProxy(s Slot, host string, port uint16) string {
	return fmt.Sprintf("proxy %v %v", s.ownAddr(addr(host)), netip.AddrPortFrom(addr(host), port))
}

func (s Slot) ownAddr(family netip.Addr) netip.Addr {
	if family.Is6() {
		return s.IP6
	}
	return s.IP4
}

func wantVisitInternet(t *testing.T, s Slot, host string, port uint16) net.Conn {
	t.Helper()
	who, conn := visit(t, s, "tcp", host, port)
	if !strings.HasPrefix(who, "internet ") {
		t.Fatalf("%s port %d: %q answers, want the internet", host, port, who)
	}
	return conn
}
