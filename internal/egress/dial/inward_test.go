package dial_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/dial"
	"github.com/moat-sandbox/moat/internal/policy"
)

// inwardDialer knows no names.
func inwardDialer(t *testing.T, ways map[uint16]*dial.Inward) *dial.Dialer {
	t.Helper()
	never, err := policy.NewNever(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dial.New(dial.Config{Resolver: names{}, Never: never, Home: ways})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newInward(t *testing.T) *dial.Inward {
	t.Helper()
	way, err := dial.NewInward()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { way.Close() })
	return way
}

// Who serves a way inwards sees the sandbox on whose behalf it is called, each
// connection its own.
func TestInward(t *testing.T) {
	plain, secure := newInward(t), newInward(t)
	d := inwardDialer(t, map[uint16]*dial.Inward{policy.PortHTTP: plain, policy.PortHTTPS: secure})
	name := parseName(t, "3000-abc.moat.test")
	for as, way := range map[uint16]*dial.Inward{policy.PortHTTP: plain, policy.PortHTTPS: secure} {
		for _, src := range []netip.Addr{netip.MustParseAddr("198.18.0.3"), netip.MustParseAddr("fd6d:6f61:7400::3")} {
			conn, remote, err := d.Dial(t.Context(), egress.Target{Name: name, Addr: netip.MustParseAddrPort("198.19.255.2:6628"), Home: as, Src: src})
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := conn.(*net.TCPConn); !ok || remote.IsValid() {
				t.Errorf("dialled %T to %v", conn, remote)
			}
			served, err := way.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if from := served.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); from != src {
				t.Errorf("called by %v, want %v", from, src)
			}
			if _, err := io.WriteString(conn, "hello"); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 5)
			if _, err := io.ReadFull(served, buf); err != nil || string(buf) != "hello" {
				t.Errorf("%q, %v", buf, err)
			}
			conn.Close()
			served.Close()
		}
	}
}

// TestAttack26InwardFromTheMachine: whoever else on the machine connects is reset,
// and takes nobody's place.
func TestAttack26InwardFromTheMachine(t *testing.T) {
	way := newInward(t)
	d := inwardDialer(t, map[uint16]*dial.Inward{policy.PortHTTP: way})
	stranger, err := net.Dial("tcp", way.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	src := netip.MustParseAddr("198.18.0.3")
	conn, _, err := d.Dial(t.Context(), egress.Target{Name: parseName(t, "3000-abc.moat.test"), Home: policy.PortHTTP, Src: src})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	served, err := way.Accept() // passes over the stranger
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	if from := served.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); from != src {
		t.Errorf("called by %v", from)
	}
	if _, err := stranger.Read(make([]byte, 1)); err == nil {
		t.Error("the stranger was served")
	}
}

// Where there is no way, nothing is dialled instead.
func TestNoWayInward(t *testing.T) {
	way := newInward(t)
	d := inwardDialer(t, map[uint16]*dial.Inward{policy.PortHTTP: way})
	name, src := parseName(t, "3000-abc.moat.test"), netip.MustParseAddr("198.18.0.3")
	for what, target := range map[string]egress.Target{
		"no such way": {Name: name, Home: policy.PortHTTPS, Src: src},
		"for nobody":  {Name: name, Home: policy.PortHTTP},
	} {
		var failed *dial.Error
		if conn, _, err := d.Dial(t.Context(), target); !errors.As(err, &failed) {
			t.Errorf("%s: %v, %v", what, conn, err)
		}
	}
	way.Close()
	if conn, _, err := d.Dial(t.Context(), egress.Target{Name: name, Home: policy.PortHTTP, Src: src}); err == nil {
		t.Errorf("after its end: %v", conn)
	}
}
