package dns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/socket"
)

// batch is how many datagrams are received and sent at a time.
const batch = 32

// packets is a UDP socket that many datagrams are received from and sent to in
// one system call. It blocks its thread while there are none: to have the
// scheduler wait instead costs more than most answers do.
type packets struct {
	fd    int
	bound netip.AddrPort
	in    messages // used by receive alone
	out   messages // used by put and flush alone
	ready int      // how many of out are to be sent

	closing atomic.Bool
	using   sync.RWMutex // held for reading while the descriptor is used
	closed  bool         // guarded by using
}

// messages are datagrams as the kernel takes and gives them.
type messages struct {
	headers [batch]socket.Message
	spans   [batch]unix.Iovec
	addrs   [batch]unix.RawSockaddrInet6
	bytes   [batch][maxQuery]byte
}

// openPackets opens a socket on an address.
func openPackets(addr netip.AddrPort) (*packets, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	defer conn.Close() // the net package has its own descriptor, and shall not wait on it
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &packets{fd: -1, bound: conn.LocalAddr().(*net.UDPAddr).AddrPort()} // as ListenUDP has it
	var failed error
	err = raw.Control(func(fd uintptr) {
		if p.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); failed == nil {
			failed = unix.SetNonblock(p.fd, false)
		}
	})
	if err = errors.Join(err, os.NewSyscallError("fcntl", failed)); err != nil {
		return nil, err
	}
	p.in.prepare()
	p.out.prepare()
	return p, nil
}

func (m *messages) prepare() {
	for i := range m.headers {
		m.spans[i] = unix.Iovec{Base: &m.bytes[i][0], Len: maxQuery}
		m.headers[i].Msghdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&m.addrs[i])), Iov: &m.spans[i], Iovlen: 1}
	}
}

// receive waits for datagrams and returns how many there are. The error is
// net.ErrClosed after close.
func (p *packets) receive() (int, error) {
	p.using.RLock()
	defer p.using.RUnlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	for i := range p.in.headers {
		p.in.headers[i].Namelen = uint32(unsafe.Sizeof(p.in.addrs[i]))
	}
	n, err := socket.ReceiveMany(p.fd, p.in.headers[:], unix.MSG_WAITFORONE)
	switch {
	case p.closing.Load():
		return 0, net.ErrClosed
	case err == unix.EINTR:
		return 0, nil
	}
	return n, os.NewSyscallError("recvmmsg", err)
}

// datagram returns one of those that were received last.
func (p *packets) datagram(i int) (from netip.AddrPort, datagram []byte) {
	return socket.AddressIn(&p.in.addrs[i]), p.in.bytes[i][:p.in.headers[i].Length]
}

// answer has a reply sent to where a query came from, one of the datagrams that
// were received last, with the next flush. The reply gets the query's id.
func (p *packets) answer(i int, query, reply []byte) {
	if len(reply) < idSize || len(reply) > maxQuery {
		return // there is none; replies over UDP are far shorter
	}
	to := &p.out.headers[p.ready]
	copy(p.out.bytes[p.ready][:], reply)
	copy(p.out.bytes[p.ready][:], query[:idSize])
	p.out.spans[p.ready].Len = uint64(len(reply))
	p.out.addrs[p.ready], to.Namelen = p.in.addrs[i], p.in.headers[i].Namelen
	p.ready++ // there are no more replies than datagrams
}

// flush sends what waits to be sent. A datagram that cannot be sent is left out.
func (p *packets) flush() (failed error) {
	p.using.RLock()
	defer p.using.RUnlock()
	if p.closed {
		return net.ErrClosed
	}
	for sent := 0; sent < p.ready; {
		n, err := socket.SendMany(p.fd, p.out.headers[sent:p.ready])
		switch err {
		case nil:
			sent += n
		case unix.EINTR:
		default:
			failed = os.NewSyscallError("sendmmsg", err)
			sent++
		}
	}
	p.ready = 0
	return failed
}

// send sends a reply at once. It may be called by many.
func (p *packets) send(reply []byte, to netip.AddrPort) error {
	p.using.RLock()
	defer p.using.RUnlock()
	if p.closed {
		return net.ErrClosed
	}
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return os.NewSyscallError("sendto", unix.Sendto(p.fd, reply, 0, sa))
}

// close has receive return, and closes the socket.
func (p *packets) close() error {
	p.closing.Store(true)
	_ = unix.Shutdown(p.fd, unix.SHUT_RD) // it says that there is no connection, and wakes receive all the same
	p.using.Lock()
	defer p.using.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	return os.NewSyscallError("close", unix.Close(p.fd))
}
