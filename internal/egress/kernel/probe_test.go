package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// outcome is what a program in a sandbox sees of an attempt to reach something.
type outcome string

const (
	reached    outcome = "reached"
	reset      outcome = "reset"      // TCP RST
	prohibited outcome = "prohibited" // ICMP administratively prohibited
	silence    outcome = "silence"    // nothing came back in time
)

// How long a probe waits before it calls it silence. What is answered is
// answered at once, but the machine may be busy; where silence is expected a
// short while must do.
const (
	patience = 5 * time.Second
	moment   = 250 * time.Millisecond
)

// probe tries to exchange data with an address from inside a slot.
func probe(t testing.TB, s Slot, proto policy.Proto, dst netip.Addr) outcome {
	t.Helper()
	result, err := tryProbe(s, proto, dst, patience)
	if err != nil {
		t.Fatalf("probe %v %v from slot %d: %v", proto, dst, s.Index, err)
	}
	return result
}

func tryProbe(s Slot, proto policy.Proto, dst netip.Addr, wait time.Duration) (outcome, error) {
	var result error
	err := inNamespace(s.NetNS, func() error {
		switch proto {
		case policy.TCP:
			result = exchange("tcp", dst, wait)
		case policy.UDP:
			result = exchange("udp", dst, wait)
		case policy.ICMP:
			result = ping(dst, wait)
		default:
			return fmt.Errorf("no probe for %v", proto)
		}
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case result == nil:
		return reached, nil
	case errors.Is(result, unix.ECONNREFUSED), errors.Is(result, unix.ECONNRESET):
		return reset, nil
	case errors.Is(result, unix.EACCES), errors.Is(result, unix.EHOSTUNREACH):
		return prohibited, nil
	case errors.Is(result, os.ErrDeadlineExceeded), errors.Is(result, unix.EAGAIN), errors.Is(result, syscall.ETIMEDOUT):
		return silence, nil
	}
	var timeout net.Error
	if errors.As(result, &timeout) && timeout.Timeout() {
		return silence, nil
	}
	return "", result
}

// exchange sends a few bytes to an echo server and waits for them.
func exchange(network string, dst netip.Addr, wait time.Duration) (err error) {
	conn, err := net.DialTimeout(network, netip.AddrPortFrom(dst, echoPort).String(), wait)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return echo(conn, wait)
}

func echoOnce(conn net.Conn) error { return echo(conn, patience) }

// resend is when a datagram is sent again. A client must not depend on it where
// nothing disturbs, but after a flood the node is short of ICMP errors for a
// while.
const resend = time.Second

func echo(conn net.Conn, wait time.Duration) error {
	_, datagrams := conn.(*net.UDPConn)
	for end := time.Now().Add(wait); ; {
		deadline := end
		if again := time.Now().Add(resend); datagrams && again.Before(end) {
			deadline = again
		}
		err := ask(conn, deadline)
		if !isTimeout(err) || deadline == end {
			return err
		}
	}
}

// ask sends a few bytes and waits for the same.
func ask(conn net.Conn, deadline time.Time) error {
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	buf := make([]byte, 16)
	n, err := conn.Read(buf)
	if err == nil && string(buf[:n]) != "ping" {
		return fmt.Errorf("the answer is %q", buf[:n])
	}
	return err
}

// ping sends one echo request by a datagram socket of ICMP.
func ping(dst netip.Addr, wait time.Duration) (err error) {
	if err := setSysctl("ipv4/ping_group_range", "0\t2147483647"); err != nil {
		return err
	}
	family, proto, request := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(dst.AsSlice()[:4])}
	if dst.Is6() {
		family, proto, request = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
		to = &unix.SockaddrInet6{Addr: dst.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	deadline := unix.NsecToTimeval(wait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &deadline); err != nil {
		return err
	}
	if err := unix.Connect(fd, to); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte{request, 0, 0, 0, 0, 0, 0, 1, 'p', 'i', 'n', 'g'}); err != nil {
		return err
	}
	_, err = unix.Read(fd, make([]byte, 64))
	return err
}

// denied is how a refusal looks for a protocol.
func denied(proto policy.Proto) outcome {
	if proto == policy.TCP {
		return reset
	}
	return prohibited
}

var protocols = []policy.Proto{policy.TCP, policy.UDP, policy.ICMP}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// expect probes addresses by all protocols.
func expect(t testing.TB, s Slot, want policy.Verdict, dsts ...string) {
	t.Helper()
	for _, dst := range dsts {
		for _, proto := range protocols {
			wanted := reached
			if want == policy.Deny {
				wanted = denied(proto)
			}
			if got := probe(t, s, proto, addr(dst)); got != wanted {
				t.Errorf("%v to %s: %s, want %s", proto, dst, got, wanted)
			}
		}
	}
}

// expectSilence probes addresses by all protocols and wants no answer at all.
func expectSilence(t testing.TB, s Slot, dsts ...string) {
	t.Helper()
	for _, dst := range dsts {
		for _, proto := range protocols {
			if got, err := tryProbe(s, proto, addr(dst), moment); got != silence {
				t.Errorf("%v to %s: %s, %v, want silence", proto, dst, got, err)
			}
		}
	}
}
