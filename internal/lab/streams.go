package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Ports of the internet's simple servers, on every public address.
const (
	EchoPort = 7  // TCP and UDP: sends back what it gets
	SSHPort  = 22 // TCP: speaks first, as SSH does, then sends back what it gets
	QUICPort = 443
)

// Banner is what the server on SSHPort says first.
const Banner = "SSH-2.0-moat_lab\r\n"

// connLimit ends forgotten connections.
const connLimit = 10 * time.Minute

// streams are the TCP servers.
type streams struct {
	listeners []net.Listener
	running   sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func startStreams(internet *Space) (*streams, error) {
	s := &streams{conns: make(map[net.Conn]struct{})}
	for port, greeting := range map[int]string{EchoPort: "", SSHPort: Banner} {
		ln, err := internet.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve TCP: %w", err), s.Close())
		}
		s.listeners = append(s.listeners, ln)
		s.running.Go(func() { s.accept(ln, greeting) })
	}
	return s, nil
}

func (s *streams) accept(ln net.Listener, greeting string) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return // closed
		}
		if !s.track(conn) {
			conn.Close()
			return
		}
		s.running.Go(func() {
			defer s.drop(conn)
			_ = conn.SetDeadline(time.Now().Add(connLimit))
			if _, err := io.WriteString(conn, greeting); err == nil {
				_, _ = io.Copy(conn, conn)
			}
		})
	}
}

func (s *streams) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *streams) drop(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	conn.Close()
}

// Close cuts all connections and waits for the servers' end.
func (s *streams) Close() error {
	var err error
	for _, ln := range s.listeners {
		err = errors.Join(err, ln.Close())
	}
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
	return err
}

// echo sends every datagram back to where it came from.
type echo struct {
	conns   []net.PacketConn
	running sync.WaitGroup
}

// startEcho needs one socket for each address, so that an answer comes from
// the address that was asked.
func startEcho(internet *Space, addrs []netip.Addr) (*echo, error) {
	e := &echo{}
	for _, addr := range addrs {
		for _, port := range []uint16{EchoPort, QUICPort} {
			conn, err := internet.ListenPacket("udp", netip.AddrPortFrom(addr, port).String())
			if err != nil {
				return nil, errors.Join(fmt.Errorf("serve UDP: %w", err), e.Close())
			}
			e.conns = append(e.conns, conn)
			e.running.Go(func() { sendBack(conn) })
		}
	}
	return e, nil
}

func sendBack(conn net.PacketConn) {
	buf := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}
}

// Close stops the server and waits for its end.
func (e *echo) Close() error {
	var err error
	for _, conn := range e.conns {
		err = errors.Join(err, conn.Close())
	}
	e.running.Wait()
	return err
}
