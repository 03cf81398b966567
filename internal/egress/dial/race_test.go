package dial_test

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/egress/dial"
)

// A node without IPv6 uplink refuses IPv6 at once and goes on with IPv4; if
// that fails, its failure is what is told.
func TestWithoutIPv6Uplink(t *testing.T) {
	l := newLab(t)
	out, err := l.Node.Command(t.Context(), "ip", "-6", "route", "del", "default").CombinedOutput()
	if err != nil {
		t.Fatalf("remove the route: %v: %s", err, out)
	}
	d := newDialer(t, l, dial.Config{})
	conn, err := d.DialName(t.Context(), "example.com", 80)
	if err != nil {
		t.Fatal(err)
	}
	if got := remote(t, conn); got != netip.MustParseAddr(web4) {
		t.Errorf("connected to %v", got)
	}
	_, err = d.DialName(t.Context(), "example.com", closedPort)
	var failed *dial.Error
	if !errors.As(err, &failed) || failed.Kind != dial.Refused || failed.Addr.Addr() != netip.MustParseAddr(web4) {
		t.Errorf("got %v", err)
	}
	_, err = d.DialAddr(t.Context(), netip.MustParseAddrPort("["+web6+"]:80"))
	if !errors.As(err, &failed) || failed.Kind != dial.Unreachable || failed.Reason() != "["+web6+"]:80 is not reachable from this node" {
		t.Errorf("got %v", err)
	}
}

// An address that swallows packets costs a quarter of a second each, not a
// timeout (RFC 8305).
func TestHappyEyeballs(t *testing.T) {
	l := newLab(t)
	warmUp(t, l)
	for _, test := range []struct {
		addrs []string
		want  string
		least time.Duration
	}{
		{[]string{web4, web6}, web6, 0},
		{[]string{web4, blackHole6}, web4, 250 * time.Millisecond},
		{[]string{blackHole6, blackHole4, web4}, web4, 500 * time.Millisecond},
	} {
		const timeout = 30 * time.Second
		d := newDialer(t, l, dial.Config{Timeout: timeout, Resolver: names{"allowed.example": test.addrs}})
		began := time.Now()
		conn, err := d.DialName(t.Context(), "allowed.example", 80)
		took := time.Since(began)
		if err != nil {
			t.Errorf("%v: %v", test.addrs, err)
			continue
		}
		if got := remote(t, conn); got.String() != test.want || took < test.least || took > timeout/2 {
			t.Errorf("%v: connected to %v after %v, want %v after %v, long before the timeout", test.addrs, got, took, test.want, test.least)
		}
	}
	conn, err := newDialer(t, l, dial.Config{}).DialName(t.Context(), "dark6.example", 80)
	if err != nil || remote(t, conn) != netip.MustParseAddr(web4) {
		t.Errorf("got %v", err)
	}
}

// The attempts that lost leave neither goroutines nor connections.
func TestNothingIsLeft(t *testing.T) {
	l := newLab(t)
	ln, err := l.Internet.Listen("tcp", "9.9.9.9:99")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := newDialer(t, l, dial.Config{Timeout: 400 * time.Millisecond, Resolver: names{
		"won.example": {blackHole6, blackHole6, "9.9.9.9"}, "lost.example": {blackHole6, blackHole4},
	}})
	before := runtime.NumGoroutine()
	for _, name := range []string{"won.example", "lost.example"} {
		if conn, err := d.DialName(t.Context(), name, 99); err == nil {
			conn.Close()
		}
	}
	for deadline := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestOrder(t *testing.T) {
	parse := func(texts ...string) (addrs []netip.Addr) {
		for _, text := range texts {
			addrs = append(addrs, netip.MustParseAddr(text))
		}
		return addrs
	}
	for _, test := range []struct{ addrs, want []netip.Addr }{
		{nil, nil},
		{parse("1.1.1.1", "2.2.2.2"), parse("1.1.1.1", "2.2.2.2")},
		{parse("1.1.1.1", "2606::1"), parse("2606::1", "1.1.1.1")},
		{parse("1.1.1.1", "2.2.2.2", "3.3.3.3", "2606::1", "2606::2"), parse("2606::1", "1.1.1.1", "2606::2", "2.2.2.2", "3.3.3.3")},
		{parse("2606::1", "2606::2", "1.1.1.1"), parse("2606::1", "1.1.1.1", "2606::2")},
	} {
		if got := dial.Order(test.addrs); !slices.Equal(got, test.want) {
			t.Errorf("%v: got %v, want %v", test.addrs, got, test.want)
		}
	}
	if got := dial.Order(make([]netip.Addr, 1000)); len(got) != 16 {
		t.Errorf("%d addresses are tried", len(got))
	}
}
