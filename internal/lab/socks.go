package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// SOCKS is a SOCKS5 proxy that notes what it is asked for.
type SOCKS struct {
	// User and Password are what it takes to use the proxy; no User, no password.
	User, Password string
	// Reply is why every request is refused, as a code of RFC 1928; 0 if none is.
	Reply byte
	// Dial connects to HOST:PORT. Without it the proxy sends back what it gets.
	Dial func(target string) (net.Conn, error)

	mu    sync.Mutex
	asked []string
}

// Codes of RFC 1928.
const (
	socksVersion     = 5
	socksPassword    = 2
	socksNoMethod    = 0xff
	socksIP4         = 1
	socksName        = 3
	socksIP6         = 4
	socksUnreachable = 4
)

// Serve accepts clients until the listener is closed.
func (s *SOCKS) Serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = s.serve(conn) // the client sees how it ends
		}()
	}
}

// Asked returns the destinations that were asked for since the last call.
func (s *SOCKS) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

func (s *SOCKS) serve(conn net.Conn) error {
	head := make([]byte, 2)
	if _, err := io.ReadFull(conn, head); err != nil {
		return err
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(conn, methods); err != nil {
		return err
	}
	if err := s.authenticate(conn, methods); err != nil {
		return err
	}
	target, err := readTarget(conn)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.asked = append(s.asked, target)
	s.mu.Unlock()
	return s.join(conn, target)
}

func (s *SOCKS) authenticate(conn net.Conn, methods []byte) error {
	if s.User == "" {
		_, err := conn.Write([]byte{socksVersion, 0})
		return err
	}
	if !slices.Contains(methods, socksPassword) {
		_, err := conn.Write([]byte{socksVersion, socksNoMethod})
		return errors.Join(err, errors.New("no password is offered"))
	}
	if _, err := conn.Write([]byte{socksVersion, socksPassword}); err != nil {
		return err
	}
	want := fmt.Sprintf("\x01%c%s%c%s", len(s.User), s.User, len(s.Password), s.Password)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		_, err = conn.Write([]byte{1, 1})
		return errors.Join(err, errors.New("wrong password"))
	}
	_, err := conn.Write([]byte{1, 0})
	return err
}

func readTarget(conn net.Conn) (string, error) {
	head := make([]byte, 5) // the last byte is the first of an address, or the length of a name
	if _, err := io.ReadFull(conn, head); err != nil {
		return "", err
	}
	rest := make([]byte, map[byte]int{socksIP4: 3, socksName: int(head[4]), socksIP6: 15}[head[3]]+2)
	if _, err := io.ReadFull(conn, rest); err != nil {
		return "", err
	}
	host, port := rest[:len(rest)-2], binary.BigEndian.Uint16(rest[len(rest)-2:])
	name := string(host)
	if addr, ok := netip.AddrFromSlice(append([]byte{head[4]}, host...)); ok && head[3] != socksName {
		name = addr.String()
	}
	return net.JoinHostPort(name, fmt.Sprint(port)), nil
}

// join connects a client with its destination.
func (s *SOCKS) join(client net.Conn, target string) error {
	answer := []byte{socksVersion, s.Reply, 0, socksName, 4, 'h', 'o', 's', 't', 0, 80}
	if s.Reply != 0 || s.Dial == nil {
		if _, err := client.Write(answer); err != nil || s.Reply != 0 {
			return err
		}
		_, err := io.Copy(client, client)
		return err
	}
	server, err := s.Dial(target)
	if err != nil {
		answer[1] = socksUnreachable
		_, err := client.Write(answer)
		return err
	}
	defer server.Close()
	if _, err := client.Write(answer); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(server, client)
		if tcp, ok := server.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	_, err = io.Copy(client, server)
	return err
}
