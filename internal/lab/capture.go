package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Packet is the header of a packet.
type Packet struct {
	// Proto is "tcp", "udp", "icmp", "icmp6", or else the protocol's number.
	Proto    string
	From, To netip.Addr
	// FromPort and ToPort are 0 where the protocol has no ports.
	FromPort, ToPort uint16
	// Type and Code are those of ICMP. About is where the packet was going that
	// an ICMP error is about; its port is 0 where there is none.
	Type, Code uint8
	About      netip.AddrPort
}

// String shows the packet as "tcp 198.51.100.2:40000 -> 1.1.1.1:443".
func (p Packet) String() string {
	text := fmt.Sprintf("%s %s -> %s", p.Proto,
		netip.AddrPortFrom(p.From, p.FromPort), netip.AddrPortFrom(p.To, p.ToPort))
	if p.Proto == "icmp" || p.Proto == "icmp6" {
		text += fmt.Sprintf(" type %d code %d", p.Type, p.Code)
	}
	if p.About.IsValid() {
		text += fmt.Sprintf(" about %s", p.About)
	}
	return text
}

// Capture notes the packets that pass interfaces, before any rule can drop
// what arrives. Neighbour discovery and other talk of a link itself is left out.
type Capture struct {
	file     *os.File // a packet socket
	outgoing bool     // note what is sent, too
	running  sync.WaitGroup

	mu    sync.Mutex
	known map[Packet]struct{}
	order []Packet
}

// Capture notes what arrives at and leaves any interface of the namespace,
// until it is closed.
func (s *Space) Capture() (*Capture, error) { return s.capture("", true) }

// capture listens on one interface, or on all of them for "".
func (s *Space) capture(name string, outgoing bool) (*Capture, error) {
	c := &Capture{outgoing: outgoing, known: make(map[Packet]struct{})}
	err := s.Do(func() error {
		every := htons(unix.ETH_P_ALL)
		where := unix.SockaddrLinklayer{Protocol: every}
		if name != "" {
			link, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			where.Ifindex = link.Index
		}
		// Protocol 0 hears nothing until it is bound.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), "lab capture")
		return unix.Bind(fd, &where)
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

func (c *Capture) run() {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool { // ends with the file
		c.drain(int(fd))
		return false
	})
}

// drain notes what the socket has queued.
func (c *Capture) drain(fd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := make([]byte, 256) // headers are enough
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch link, ok := from.(*unix.SockaddrLinklayer); {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // an interface went
			continue
		case err != nil:
			return
		case !ok || link.Pkttype == unix.PACKET_OUTGOING && !c.outgoing:
			continue
		}
		if p, ok := parsePacket(buf[:n]); ok {
			c.add(p)
		}
	}
}

func (c *Capture) add(p Packet) {
	if len(c.order) >= seenLimit {
		return
	}
	if p.Proto == "tcp" || p.Proto == "udp" {
		if _, ok := c.known[p]; ok {
			return // more of a flow that is noted already
		}
		c.known[p] = struct{}{}
	}
	c.order = append(c.order, p)
}

// Packets lists what has passed until now, in the order of first sight: one
// entry for all packets of a TCP or UDP flow in one direction, one for each
// other packet.
func (c *Capture) Packets() []Packet {
	if raw, err := c.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { c.drain(int(fd)) }) // fails when closed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Packet(nil), c.order...)
}

// Close stops listening and waits for the end of it.
func (c *Capture) Close() error {
	err := c.file.Close()
	c.running.Wait()
	return err
}

// parsePacket reads the headers of an IP packet. It is not ok for anything
// else and for what a link says by itself.
func parsePacket(b []byte) (p Packet, ok bool) {
	proto, rest, ok := parseIP(b, &p)
	if !ok {
		return p, false
	}
	switch proto {
	case unix.IPPROTO_TCP:
		p.Proto = "tcp"
		p.FromPort, p.ToPort = parsePorts(rest)
	case unix.IPPROTO_UDP:
		p.Proto = "udp"
		p.FromPort, p.ToPort = parsePorts(rest)
	case unix.IPPROTO_ICMP:
		p.Proto = "icmp"
		p.parseICMP(rest, unix.IPPROTO_ICMP)
	case unix.IPPROTO_ICMPV6:
		p.Proto = "icmp6"
		p.parseICMP(rest, unix.IPPROTO_ICMPV6)
	default:
		p.Proto = fmt.Sprint(proto)
	}
	const firstOfLink, lastOfLink = 130, 143 // MLD, RS, RA, NS, NA, redirect
	ofLink := p.Proto == "icmp6" && p.Type >= firstOfLink && p.Type <= lastOfLink
	return p, !ofLink && !p.From.IsLinkLocalUnicast() && !p.To.IsLinkLocalMulticast()
}

// parseIP reads the addresses and returns the protocol and what follows the
// header.
func parseIP(b []byte, p *Packet) (proto int, rest []byte, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.From, _ = netip.AddrFromSlice(b[12:16])
		p.To, _ = netip.AddrFromSlice(b[16:20])
		header := min(int(b[0]&15)*4, len(b))
		return int(b[9]), b[header:], true
	case len(b) >= 40 && b[0]>>4 == 6:
		p.From, _ = netip.AddrFromSlice(b[8:24])
		p.To, _ = netip.AddrFromSlice(b[24:40])
		return int(b[6]), b[40:], true
	default:
		return 0, nil, false
	}
}

func parsePorts(b []byte) (from, to uint16) {
	if len(b) < 4 {
		return 0, 0
	}
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
}

// parseICMP reads type and code, and from an error the packet it is about.
func (p *Packet) parseICMP(b []byte, proto int) {
	if len(b) < 8 {
		return
	}
	p.Type, p.Code = b[0], b[1]
	isError := proto == unix.IPPROTO_ICMPV6 && p.Type < 128 ||
		proto == unix.IPPROTO_ICMP && (p.Type == 3 || p.Type == 11 || p.Type == 12)
	var about Packet
	if !isError {
		return
	}
	if inner, rest, ok := parseIP(b[8:], &about); ok {
		var port uint16
		if inner == unix.IPPROTO_TCP || inner == unix.IPPROTO_UDP {
			_, port = parsePorts(rest)
		}
		p.About = netip.AddrPortFrom(about.To, port)
	}
}
