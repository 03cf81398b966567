package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Space is one network namespace of the lab.
type Space struct {
	name string
	ns   netns.NsHandle
	// resolver is where Dial looks names up, as address and port.
	resolver string
}

// newSpace makes an empty namespace with its loopback up. The caller closes it.
func newSpace(name string) (*Space, error) {
	s := &Space{name: name, ns: netns.None()}
	err := onThrowawayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return s.adoptThread()
	})
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	return s, nil
}

// adoptThread makes the calling thread's namespace the one of s.
func (s *Space) adoptThread() error {
	ns, err := netns.Get()
	if err != nil {
		return err
	}
	if err := linkUp("lo"); err != nil {
		ns.Close()
		return err
	}
	s.ns = ns
	return nil
}

func (s *Space) close() error {
	if !s.ns.IsOpen() {
		return nil
	}
	return s.ns.Close()
}

// Do runs fn inside the namespace, on a thread of its own. Sockets that fn
// opens stay in the namespace; goroutines that it starts are outside of it.
func (s *Space) Do(fn func() error) error {
	return onThrowawayThread(func() error {
		if err := netns.Set(s.ns); err != nil {
			return fmt.Errorf("enter namespace %s: %w", s.name, err)
		}
		return fn()
	})
}

// Dial connects from inside the namespace. Names are looked up at the lab's
// DNS server, also from inside. It fits http.Transport's DialContext.
func (s *Space) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return s.dialAddr(ctx, network, address)
	}
	lookup := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return s.dialAddr(ctx, network, s.resolver)
	}}
	addrs, err := lookup.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		var conn net.Conn
		conn, err = s.dialAddr(ctx, network, net.JoinHostPort(addr.Unmap().String(), port))
		if err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// dialAddr connects to an IP address. For anything else the net package would
// leave this thread.
func (s *Space) dialAddr(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = s.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen opens a stream listener inside the namespace.
func (s *Space) Listen(network, address string) (ln net.Listener, err error) {
	err = s.Do(func() error {
		ln, err = net.Listen(network, address)
		return err
	})
	return ln, err
}

// ListenPacket opens a packet socket inside the namespace.
func (s *Space) ListenPacket(network, address string) (conn net.PacketConn, err error) {
	err = s.Do(func() error {
		conn, err = net.ListenPacket(network, address)
		return err
	})
	return conn, err
}
