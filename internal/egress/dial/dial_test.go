package dial_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/dial"
	"github.com/moat-sandbox/moat/internal/egress/dns"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Addresses of the lab's internet, and two public ones that nobody has:
// packets to them vanish.
const (
	web4, web6     = "93.184.216.34", "2606:2800:220:1::34"
	blackHole4     = "45.60.70.81"
	blackHole6     = "2a02:6b8::81"
	closedPort     = 4711
	nodeListenPort = 8080
)

const records = `
dark6.example.    60 IN AAAA 2a02:6b8::81
dark6.example.    60 IN A    93.184.216.34
dark.example.     60 IN A    45.60.70.81
mixed.example.    60 IN A    10.0.0.1
mixed.example.    60 IN A    93.184.216.34
alias.example.    60 IN CNAME metadata.evil.example.
`

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(context.Background(), lab.Config{Records: records})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// warmUp waits until the lab's link is ready for IPv6: for a moment after its
// birth it has no address to ask its neighbour from.
func warmUp(t *testing.T, l *lab.Lab) {
	t.Helper()
	conn, err := l.Node.Dial(t.Context(), "tcp", net.JoinHostPort(web6, "443"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func labNever(t *testing.T) *policy.Never {
	t.Helper()
	never, err := policy.NewNever([]policy.Range{
		{Prefix: netip.PrefixFrom(lab.NodeIP4, 32), Why: "an address of this node"},
		{Prefix: netip.PrefixFrom(lab.NodeIP6, 128), Why: "an address of this node"},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return never
}

func labResolver(t *testing.T, l *lab.Lab) *dns.Resolver {
	t.Helper()
	r, err := dns.NewResolver(dns.ResolverConfig{
		Upstreams: []netip.AddrPort{netip.MustParseAddrPort(lab.DNSServer)},
		Never:     labNever(t),
		Dial:      l.Node.Dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// newDialer returns a dialler on the lab's node.
func newDialer(t *testing.T, l *lab.Lab, cfg dial.Config) *dial.Dialer {
	t.Helper()
	if cfg.Resolver == nil {
		cfg.Resolver = labResolver(t, l)
	}
	if cfg.Never == nil {
		cfg.Never = labNever(t)
	}
	d, err := dial.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dial.Inside(d, l.Node.Do)
	return d
}

// names answers lookups as a resolver would that filters nothing.
type names map[string][]string

func (n names) Lookup(_ context.Context, name string) ([]netip.Addr, time.Duration, error) {
	var addrs []netip.Addr
	for _, text := range n[name] {
		addr, _ := netip.ParseAddr(text) // the zero Addr is a test of its own
		addrs = append(addrs, addr)
	}
	return addrs, time.Minute, nil
}

// Known implements dial.Resolver.
func (n names) Known(name policy.Name) ([]netip.Addr, bool) {
	addrs, _, _ := n.Lookup(context.Background(), name.String())
	return addrs, true
}

// remote closes the connection and returns the address at its other end.
func remote(t *testing.T, conn net.Conn) netip.Addr {
	t.Helper()
	defer conn.Close()
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("the connection is a %T", conn)
	}
	return netip.MustParseAddrPort(conn.RemoteAddr().String()).Addr()
}

func TestDialName(t *testing.T) {
	l := newLab(t)
	warmUp(t, l)
	d := newDialer(t, l, dial.Config{})
	conn, err := d.DialName(t.Context(), "example.com", 80)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: example.com\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Errorf("got %q, %v", line, err)
	}
	if got := remote(t, conn); got != netip.MustParseAddr(web6) {
		t.Errorf("connected to %v, want IPv6 first", got)
	}
	if seen := l.Requests(); len(seen) != 1 || seen[0].From.Addr() != lab.NodeIP6 {
		t.Errorf("the internet saw %+v", seen)
	}
}

func TestDialAddr(t *testing.T) {
	d := newDialer(t, newLab(t), dial.Config{})
	for _, addr := range []string{web4, web6} {
		want := netip.MustParseAddr(addr)
		conn, err := d.DialAddr(t.Context(), netip.AddrPortFrom(want, 443))
		if err != nil {
			t.Fatal(err)
		}
		if got := remote(t, conn); got != want {
			t.Errorf("connected to %v, want %v", got, want)
		}
	}
}

// Attack 15: what a name resolves to is judged when it is connected to, even
// if the resolver has let it through.
func TestAttack15Rebinding(t *testing.T) {
	l := newLab(t)
	for _, addr := range []string{
		"127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "198.19.0.1", "224.0.0.1", "255.255.255.255",
		"::1", "fe80::1", "fd00::1", "64:ff9b::7f00:1", "2002:7f00:1::",
		"::ffff:127.0.0.1", "::ffff:93.184.216.34", // mapped: of a public address, too
		"fe80::1%lo", "2606:2800:220:1::34%lo", // with a zone
		"not an address",
		"0.0.0.0", "::", // attack 16
		lab.NodeIP4.String(), lab.NodeIP6.String(),
	} {
		d := newDialer(t, l, dial.Config{Resolver: names{"allowed.example": {addr}}})
		conn, err := d.DialName(t.Context(), "allowed.example", 80)
		checkForbidden(t, addr, conn, err)
		parsed, _ := netip.ParseAddr(addr)
		conn, err = d.DialAddr(t.Context(), netip.AddrPortFrom(parsed, 80))
		checkForbidden(t, addr, conn, err)
		name := policy.Name{}
		if name, err = policy.ParseName("allowed.example"); err != nil {
			t.Fatal(err)
		}
		for _, target := range []egress.Target{
			{Name: name, Addr: netip.AddrPortFrom(netip.Addr{}, 80)}, {Addr: netip.AddrPortFrom(parsed, 80)},
		} {
			if _, ok := d.Start(target); ok {
				t.Errorf("%s: a connection to %+v has begun", addr, target)
			}
		}
	}
	if packets := l.Packets(); len(packets) != 0 {
		t.Errorf("packets have left the node: %v", packets)
	}
}

// Attack 15: the last judge sees the address that the kernel is about to get.
func TestAttack15JudgedAtConnectTime(t *testing.T) {
	d, err := dial.New(dial.Config{Resolver: names{}, Never: labNever(t)})
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{
		"127.0.0.1:80", "[::1]:80", "[fe80::1%eth0]:80", "[::ffff:1.1.1.1]:80", "0.0.0.0:80", "localhost:80", ":80", "",
	} {
		var forbidden *egress.ForbiddenError
		if err := dial.Control(d, address); !errors.As(err, &forbidden) {
			t.Errorf("%q: got %v", address, err)
		}
	}
	for _, address := range []string{"1.1.1.1:80", "[2606:4700:4700::1111]:80"} {
		if err := dial.Control(d, address); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func checkForbidden(t *testing.T, what string, conn net.Conn, err error) {
	t.Helper()
	var failed *dial.Error
	var forbidden *egress.ForbiddenError
	if conn != nil || !errors.As(err, &failed) || failed.Kind != dial.Forbidden || !errors.As(err, &forbidden) {
		t.Errorf("%s: got %v, %v", what, conn, err)
		return
	}
	if forbidden.Why == "" || !strings.Contains(failed.Reason(), "never reachable: "+forbidden.Why) {
		t.Errorf("%s: the reason is %q", what, failed.Reason())
	}
}

// Attack 16: the node itself listens, and is not reached by any name for it.
func TestAttack16TheNodeItself(t *testing.T) {
	l := newLab(t)
	ln, err := l.Node.Listen("tcp", fmt.Sprintf(":%d", nodeListenPort))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if conn, err := ln.Accept(); err == nil {
			accepted <- conn
		}
	}()
	d := newDialer(t, l, dial.Config{Resolver: names{
		"allowed.example": {"0.0.0.0", "::", "127.0.0.1", "::1", lab.NodeIP4.String(), lab.NodeIP6.String()},
	}})
	conn, err := d.DialName(t.Context(), "allowed.example", nodeListenPort)
	checkForbidden(t, "the node", conn, err)
	// The listener is there for those who may reach it.
	conn, err = l.Node.Dial(t.Context(), "tcp", fmt.Sprintf("0.0.0.0:%d", nodeListenPort))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if first := <-accepted; first.RemoteAddr().String() != conn.LocalAddr().String() {
		t.Errorf("the node was reached from %v", first.RemoteAddr())
	} else {
		first.Close()
	}
}

// The node may get addresses that are in no table.
func TestAttack16AddressOfTheNodeThatNobodyKnows(t *testing.T) {
	l := newLab(t)
	ln, err := l.Node.Listen("tcp", fmt.Sprintf(":%d", nodeListenPort))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	heard := make(chan int, 2)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			n, _ := conn.Read(make([]byte, 1))
			conn.Close()
			heard <- n
		}
	}()
	never, err := policy.NewNever(nil, []netip.Prefix{netip.PrefixFrom(lab.NodeIP4, 24), netip.PrefixFrom(lab.NodeIP6, 64)})
	if err != nil {
		t.Fatal(err)
	}
	d := newDialer(t, l, dial.Config{Never: never, Resolver: names{
		"four.example": {lab.NodeIP4.String()}, "six.example": {lab.NodeIP6.String()},
	}})
	for _, name := range []string{"four.example", "six.example"} {
		conn, err := d.DialName(t.Context(), name, nodeListenPort)
		checkForbidden(t, name, conn, err)
		if n := <-heard; n != 0 {
			t.Errorf("%s: something was sent", name)
		}
	}
}

// Forbidden addresses do not keep a name from its others.
func TestForbiddenAddressesAreSkipped(t *testing.T) {
	l := newLab(t)
	for name, d := range map[string]*dial.Dialer{
		"mixed.example":   newDialer(t, l, dial.Config{}),
		"allowed.example": newDialer(t, l, dial.Config{Resolver: names{"allowed.example": {"::1", "10.0.0.1", web4}}}),
	} {
		conn, err := d.DialName(t.Context(), name, 80)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := remote(t, conn); got != netip.MustParseAddr(web4) {
			t.Errorf("%s: connected to %v", name, got)
		}
	}
}

func TestErrors(t *testing.T) {
	l := newLab(t)
	d := newDialer(t, l, dial.Config{Timeout: 3 * time.Second})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		port uint16
		kind dial.Kind
		want string
	}{
		{"nowhere.invalid", t.Context(), 443, dial.Unresolved, "nowhere.invalid:443 does not resolve: no such name"},
		{"not a name", t.Context(), 443, dial.Unresolved, "not a name:443 does not resolve: not a valid DNS name"},
		{"private.evil.example", t.Context(), 80, dial.Forbidden, "private.evil.example:80 leads to an address that is not reachable: 10.0.0.1 is never reachable: private network"},
		{"alias.example", t.Context(), 80, dial.Forbidden, "alias.example:80 leads to an address that is not reachable: 169.254.169.254 is never reachable: link-local network and cloud metadata"},
		{"github.com", t.Context(), closedPort, dial.Refused, "github.com:4711 (140.82.112.3) refuses connections"},
		{"dark.example", t.Context(), 443, dial.TimedOut, "dark.example:443 (45.60.70.81) does not answer"},
		{"example.com", canceled, 443, dial.Canceled, "the connection to example.com:443 is not wanted any more"},
		{"dark6.example", expired, 443, dial.Unresolved, "dark6.example:443 does not resolve: no name server answers"}, // not looked up before
	} {
		conn, err := d.DialName(test.ctx, test.name, test.port)
		var failed *dial.Error
		if conn != nil || !errors.As(err, &failed) {
			t.Errorf("%s: got %v, %v", test.name, conn, err)
			continue
		}
		if failed.Kind != test.kind || failed.Reason() != test.want {
			t.Errorf("%s: got kind %d, %q (%v)\nwant %d, %q", test.name, failed.Kind, failed.Reason(), err, test.kind, test.want)
		}
	}
	if _, err := newDialer(t, l, dial.Config{Resolver: names{}}).DialName(t.Context(), "empty.example", 80); !errors.Is(err, egress.ErrNoAddress) {
		t.Errorf("a resolver that returns nothing: got %v", err)
	}
}

// The environment of the node does not redirect connections.
func TestNoProxyFromTheEnvironment(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		t.Setenv(name, "http://45.60.70.80:3128")
	}
	l := newLab(t)
	conn, err := newDialer(t, l, dial.Config{}).DialName(t.Context(), "github.com", 443)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if slices.ContainsFunc(l.Packets(), func(p lab.Packet) bool { return p.To == netip.MustParseAddr("45.60.70.80") }) {
		t.Errorf("packets went to the proxy: %v", l.Packets())
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]dial.Config{
		"no resolver":      {Never: labNever(t)},
		"no table":         {Resolver: names{}},
		"negative timeout": {Resolver: names{}, Never: labNever(t), Timeout: -1},
	} {
		if d, err := dial.New(cfg); err == nil || d != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Connections to different addresses share the node's ports: there are more of
// them than ports.
func TestPortsAreShared(t *testing.T) {
	l := newLab(t)
	const script = `echo "40000 40003" >/proc/sys/net/ipv4/ip_local_port_range`
	if out, err := l.Node.Command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := newDialer(t, l, dial.Config{})
	for range 4 {
		for _, addr := range []string{"93.184.216.34:80", "93.184.216.35:80", "9.9.9.9:80"} {
			conn, err := d.DialAddr(t.Context(), netip.MustParseAddrPort(addr))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
	}
}
