package kernel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What root inside a sandbox could send if everything between it and the wire
// were broken: any frame at all.

// sendFrames puts frames on the wire from inside a slot, past the sandbox's
// own network stack.
func sendFrames(t testing.TB, s Slot, frames ...[]byte) {
	t.Helper()
	err := inNamespace(s.NetNS, func() (err error) {
		link, err := netlink.LinkByName(innerIf)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ether frames a payload.
func ether(dst, src net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(b, ethertype), payload...)
}

// ip4 makes an IPv4 packet; options are a multiple of four bytes.
func ip4(src, dst netip.Addr, proto byte, options, payload []byte) []byte {
	b := make([]byte, 20, 20+len(options)+len(payload))
	b[0] = 0x40 | byte(5+len(options)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(options)+len(payload)))
	b[8], b[9] = 64, proto
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	b = append(b, options...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, payload...)
}

// ip6 makes an IPv6 packet.
func ip6(src, dst netip.Addr, next byte, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = next, 64
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, payload...)
}

// udpTo makes a UDP datagram that isUDPTo knows again.
func datagramTo(src, dst netip.Addr, port uint16) []byte {
	b := []byte{0x30, 0x39, byte(port >> 8), byte(port), 0, 12, 0, 0, 'm', 'o', 'a', 't'}
	binary.BigEndian.PutUint16(b[6:], transportChecksum(src, dst, unix.IPPROTO_UDP, b))
	return b
}

// transportChecksum is over the addresses, too.
func transportChecksum(src, dst netip.Addr, proto byte, segment []byte) uint16 {
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, proto, 0, byte(len(segment)))
	return checksum(append(pseudo, segment...))
}

func icmpMessage(kind, code byte, rest ...byte) []byte {
	b := append([]byte{kind, code, 0, 0}, rest...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// tap records frames that arrive at an interface.
type tap struct {
	file *os.File
	mu   sync.Mutex
	seen [][]byte
	done chan struct{}
}

// listen taps an interface of a namespace; "" is the node's. It sees what comes
// in, not what goes out.
func listen(t testing.TB, ns, name string) *tap {
	t.Helper()
	p := &tap{done: make(chan struct{})}
	attach := func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return err
		}
		p.file = os.NewFile(uintptr(fd), "tap")
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	}
	err := onOwnThread(attach)
	if ns != "" {
		err = inNamespace(ns, attach)
	}
	if err != nil {
		t.Fatal(err)
	}
	go p.record()
	t.Cleanup(func() {
		if err := p.file.Close(); err != nil {
			t.Error(err)
		}
		<-p.done
	})
	return p
}

func (p *tap) record() {
	defer close(p.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := p.file.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.seen = append(p.seen, append([]byte{}, buf[:n]...))
		p.mu.Unlock()
	}
}

// frames returns what was seen so far and matches.
func (p *tap) frames(match func([]byte) bool) [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found [][]byte
	for _, f := range p.seen {
		if match(f) {
			found = append(found, f)
		}
	}
	return found
}

// await waits until something matches.
func (p *tap) await(t testing.TB, what string, match func([]byte) bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); len(p.frames(match)) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s was not seen", what)
		}
	}
}

// isUDPTo matches IPv4 and IPv6 frames with UDP to a port, also behind a VLAN
// tag or other headers: the marker is searched for.
func isUDPTo(port uint16) func([]byte) bool {
	return func(f []byte) bool {
		for i := 14; i+12 <= len(f); i++ {
			if binary.BigEndian.Uint16(f[i+2:]) == port && string(f[i+8:i+12]) == "moat" {
				return true
			}
		}
		return false
	}
}
