package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Packet is the header of a packet that arrived at the internet's end of the
// wire, before anything there could drop it.
type Packet struct {
	// Proto is "tcp", "udp", "icmp", "icmp6", or else the protocol's number.
	Proto    string
	From, To netip.Addr
	// FromPort and ToPort are 0 where the protocol has no ports.
	FromPort, ToPort uint16
}

// String shows the packet as "tcp 198.51.100.2:40000 -> 1.1.1.1:443".
func (p Packet) String() string {
	return fmt.Sprintf("%s %s -> %s", p.Proto,
		netip.AddrPortFrom(p.From, p.FromPort), netip.AddrPortFrom(p.To, p.ToPort))
}

// capture listens on the wire. Neighbour discovery and other talk of the link
// itself is left out.
type capture struct {
	file    *os.File // a packet socket
	running sync.WaitGroup

	mu    sync.Mutex
	known map[Packet]struct{}
	order []Packet
}

func startCapture(internet *Space) (*capture, error) {
	c := &capture{known: make(map[Packet]struct{})}
	err := internet.Do(func() error {
		link, err := net.InterfaceByName(internetLink)
		if err != nil {
			return err
		}
		every := htons(unix.ETH_P_ALL)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(every))
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), "lab capture")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: link.Index})
	})
	if err != nil {
		if c.file != nil {
			c.file.Close()
		}
		return nil, fmt.Errorf("listen on the wire: %w", err)
	}
	c.running.Go(c.run)
	return c, nil
}

func htons(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}

func (c *capture) run() {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 128) // headers are enough
	for {
		var n int
		var from unix.Sockaddr
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, recvErr = unix.Recvfrom(int(fd), buf, 0)
			return recvErr != syscall.EAGAIN
		})
		if err != nil {
			return // closed
		}
		if link, ok := from.(*unix.SockaddrLinklayer); recvErr != nil || !ok || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if p, ok := parsePacket(buf[:n]); ok {
			c.add(p)
		}
	}
}

func (c *capture) add(p Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.known[p]; ok || len(c.order) >= seenLimit {
		return
	}
	c.known[p] = struct{}{}
	c.order = append(c.order, p)
}

func (c *capture) list() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Packet(nil), c.order...)
}

// Close stops listening and waits for the end of it.
func (c *capture) Close() error {
	err := c.file.Close()
	c.running.Wait()
	return err
}

// parsePacket reads the headers of an IP packet. It is not ok for anything
// else and for what a link says by itself.
func parsePacket(b []byte) (p Packet, ok bool) {
	var proto int
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.From, _ = netip.AddrFromSlice(b[12:16])
		p.To, _ = netip.AddrFromSlice(b[16:20])
		proto = int(b[9])
		if header := int(b[0]&15) * 4; header <= len(b) {
			rest = b[header:]
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		p.From, _ = netip.AddrFromSlice(b[8:24])
		p.To, _ = netip.AddrFromSlice(b[24:40])
		proto = int(b[6])
		rest = b[40:]
	default:
		return p, false
	}
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		p.Proto = map[int]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[proto]
		if len(rest) >= 4 {
			p.FromPort = binary.BigEndian.Uint16(rest)
			p.ToPort = binary.BigEndian.Uint16(rest[2:])
		}
	case unix.IPPROTO_ICMP:
		p.Proto = "icmp"
	case unix.IPPROTO_ICMPV6:
		p.Proto = "icmp6"
		const firstOfLink, lastOfLink = 130, 143 // MLD, RS, RA, NS, NA, redirect
		if len(rest) > 0 && rest[0] >= firstOfLink && rest[0] <= lastOfLink {
			return p, false
		}
	default:
		p.Proto = fmt.Sprint(proto)
	}
	linkOnly := p.From.IsLinkLocalUnicast() || p.To.IsLinkLocalMulticast()
	return p, !linkOnly
}
