package dial_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/dial"
	"github.com/moat-sandbox/moat/internal/egress/socket"
	"github.com/moat-sandbox/moat/internal/policy"
)

// What can be begun without waiting is a connection to the first address that
// will do.
func TestStart(t *testing.T) {
	l := newLab(t)
	ln, err := l.Internet.Listen("tcp", ":4433")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := newDialer(t, l, dial.Config{Resolver: names{
		"one.example": {"93.184.216.34"}, "two.example": {"93.184.216.34", "140.82.112.3"}, "none.example": nil,
	}})
	target := func(name string) egress.Target {
		parsed, err := policy.ParseName(name)
		if err != nil {
			t.Fatal(err)
		}
		return egress.Target{Name: parsed, Addr: netip.AddrPortFrom(netip.Addr{}, 4433)}
	}
	only := func(want string) func(netip.Addr) bool {
		return func(addr netip.Addr) bool { return addr.String() == want }
	}
	for what, x := range map[string]struct {
		target egress.Target
		remote string // empty if nothing can be begun
		alone  bool   // there is no other address to try
	}{
		"one address":     {target("one.example"), "93.184.216.34:4433", true},
		"two addresses":   {target("two.example"), "93.184.216.34:4433", false},
		"no address":      {target("none.example"), "", false},
		"by address":      {egress.Target{Addr: netip.MustParseAddrPort("140.82.112.3:4433")}, "140.82.112.3:4433", true},
		"another will do": {egress.Target{Name: target("two.example").Name, Addr: target("two.example").Addr, Permit: only("140.82.112.3")}, "140.82.112.3:4433", true},
		"none will do":    {egress.Target{Name: target("two.example").Name, Addr: target("two.example").Addr, Permit: only("9.9.9.9")}, "", false},
		"by way of a proxy": {
			egress.Target{Name: target("one.example").Name, Addr: target("one.example").Addr, Through: &policy.Upstream{Addr: netip.MustParseAddr("93.184.216.34"), Port: 4433}},
			"", false,
		},
	} {
		begun, ok := d.Start(x.target)
		if ok != (x.remote != "") {
			t.Errorf("%s: begun is %v", what, ok)
		}
		if !ok {
			continue
		}
		if begun.Remote.String() != x.remote || (begun.Patience == dial.DefaultTimeout) != x.alone {
			t.Errorf("%s: %+v", what, begun)
		}
		wantConnection(t, begun.FD, ln)
	}
}

// wantConnection writes to a socket and expects that where a listener is.
func wantConnection(t *testing.T, fd int, ln net.Listener) {
	t.Helper()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for err = unix.EAGAIN; errors.Is(err, unix.EAGAIN); { // until it is connected
		_, err = socket.Write(fd, []byte("hello"))
	}
	socket.Close(fd)
	if got, readErr := io.ReadAll(server); string(got) != "hello" || err != nil || readErr != nil {
		t.Errorf("%q, %v, %v", got, err, readErr)
	}
}
