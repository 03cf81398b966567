package dial_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/dial"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

const password = "hunter2-never-shown"

// The addresses of private servers in a laboratory, which its operator lets be
// reached.
const (
	private1, private2, private3 = "10.77.0.1", "10.77.0.2", "10.77.0.3"
)

// newPrivateLab returns a laboratory whose node has the private addresses, and
// a dialler there.
func newPrivateLab(t *testing.T, known names) (*lab.Lab, *dial.Dialer) {
	t.Helper()
	l := newLab(t)
	for _, addr := range []string{private1, private2, private3} {
		if out, err := l.Node.Command(t.Context(), "ip", "addr", "add", addr+"/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	never, err := policy.NewNever(nil, []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	d, err := dial.New(dial.Config{Resolver: known, Never: never, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	dial.Inside(d, l.Node.Do)
	dial.Anywhere(d)
	return l, d
}

func listen(t *testing.T, l *lab.Lab, host string) *net.TCPListener {
	t.Helper()
	ln, err := l.Node.Listen("tcp4", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// socksServer is a proxy of a laboratory, or what says something else to who
// takes it for one.
type socksServer struct {
	lab.SOCKS
	*net.TCPListener
	garbage string
}

func (s *socksServer) start(t *testing.T, l *lab.Lab) *socksServer {
	t.Helper()
	s.TCPListener = listen(t, l, private1)
	if s.garbage == "" {
		go s.Serve(s.TCPListener)
		return s
	}
	go func() {
		for {
			conn, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, s.garbage) // the client sees how it ends
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn) // what is left unread would reset the connection
			}()
		}
	}()
	return s
}

// upstream is the proxy as a policy has it.
func (s *socksServer) upstream(user, password string) *policy.Upstream {
	addr := s.Addr().(*net.TCPAddr).AddrPort()
	return &policy.Upstream{Addr: addr.Addr(), Port: addr.Port(), Username: user, Password: secret.New(password)}
}

func parseName(t *testing.T, s string) policy.Name {
	t.Helper()
	n, err := policy.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A name is looked up by the proxy and by nobody else; addresses are passed on
// as they are, and the first byte of the destination is not lost.
func TestThroughProxy(t *testing.T) {
	l, d := newPrivateLab(t, nil) // resolves nothing
	for _, user := range []string{"", "someone"} {
		s := (&socksServer{SOCKS: lab.SOCKS{User: user, Password: password}}).start(t, l)
		for _, x := range []struct {
			target egress.Target
			want   string
			remote bool
		}{
			{egress.Target{Name: parseName(t, "example.com"), Addr: netip.MustParseAddrPort("1.1.1.1:443")}, "example.com:443", false},
			{egress.Target{Addr: netip.MustParseAddrPort("93.184.216.34:22")}, "93.184.216.34:22", true},
			{egress.Target{Addr: netip.MustParseAddrPort("[2606:2800:220:1::34]:80")}, "[2606:2800:220:1::34]:80", true},
		} {
			x.target.Through = s.upstream("someone", password)
			conn, remote, err := d.Dial(t.Context(), x.target)
			if err != nil {
				t.Fatal(err)
			}
			if remote.IsValid() != x.remote || x.remote && remote != x.target.Addr {
				t.Errorf("%s: remote address %v", x.want, remote)
			}
			if _, err := io.WriteString(conn, "x"); err != nil {
				t.Fatal(err)
			}
			back := make([]byte, 1)
			if _, err := io.ReadFull(conn, back); err != nil || back[0] != 'x' {
				t.Errorf("%s: %q, %v", x.want, back, err)
			}
			conn.Close()
			if got := s.Asked(); len(got) != 1 || got[0] != x.want {
				t.Errorf("the proxy was asked for %s, want %s", got, x.want)
			}
		}
	}
}

// A proxy that does not connect, or is none, fails the dial and never lets it
// around itself. Neither the password nor where the proxy is reaches the
// sandbox, and the password no log.
func TestProxyFails(t *testing.T) {
	l, d := newPrivateLab(t, nil)
	for what, x := range map[string]struct {
		server *socksServer
		user   string
		want   string
	}{
		"wrong password":      {&socksServer{SOCKS: lab.SOCKS{User: "someone", Password: "other"}}, "someone", "does not accept the username and password"},
		"no password":         {&socksServer{SOCKS: lab.SOCKS{User: "someone", Password: "other"}}, "", "accepts none of the ways to log in"},
		"refused":             {&socksServer{SOCKS: lab.SOCKS{Reply: 5}}, "", "is refused by the destination"},
		"not allowed":         {&socksServer{SOCKS: lab.SOCKS{Reply: 2}}, "", "does not allow the connection"},
		"unknown code":        {&socksServer{SOCKS: lab.SOCKS{Reply: 99}}, "", "fails with code 99"},
		"an HTTP server":      {&socksServer{garbage: "HTTP/1.1 400 Bad Request\r\n\r\n"}, "", "does not speak SOCKS5"},
		"asks what was not":   {&socksServer{garbage: "\x05\x01"}, "", "does not speak SOCKS5"},
		"password not agreed": {&socksServer{garbage: "\x05\x02"}, "", "there is none"},
		"ends early":          {&socksServer{garbage: "\x05"}, "", "cannot be used"},
		"bound to nonsense":   {&socksServer{garbage: "\x05\x00\x05\x00\x00\x09"}, "", "does not speak SOCKS5"},
	} {
		x.server.start(t, l)
		up := x.server.upstream(x.user, password)
		conn, _, err := d.Dial(t.Context(), egress.Target{Name: parseName(t, "example.com"), Addr: netip.MustParseAddrPort("1.1.1.1:443"), Through: up})
		var failed *dial.Error
		if !errors.As(err, &failed) || conn != nil || failed.Kind != dial.Proxy {
			t.Errorf("%s: %v, %v", what, conn, err)
			continue
		}
		if !strings.Contains(failed.Reason(), x.want) || strings.Contains(failed.Reason(), private1) {
			t.Errorf("%s: %q, want %q in it", what, failed.Reason(), x.want)
		}
		if all := fmt.Sprintf("%v %+v %#v %s", err, err, err, failed.Reason()); strings.Contains(all, password) {
			t.Errorf("%s: the error shows the password: %s", what, all)
		}
	}
}

// The proxy's own address is judged when it is dialled, and so is a destination
// that is an address.
func TestProxyAtForbiddenAddress(t *testing.T) {
	l, d := newPrivateLab(t, names{"proxy.example": {"169.254.169.254"}, "ok.example": {private1}})
	s := new(socksServer).start(t, l)
	here := s.upstream("", "")
	web := netip.MustParseAddrPort("93.184.216.34:80")
	for what, target := range map[string]egress.Target{
		"metadata service": {Addr: web, Through: &policy.Upstream{Addr: netip.MustParseAddr("169.254.169.254"), Port: 1080}},
		"by name":          {Addr: web, Through: &policy.Upstream{Name: parseName(t, "proxy.example"), Port: 1080}},
		"destination":      {Addr: netip.MustParseAddrPort("10.0.0.1:80"), Through: here},
	} {
		_, _, err := d.Dial(t.Context(), target)
		var forbidden *egress.ForbiddenError
		if !errors.As(err, &forbidden) {
			t.Errorf("%s: %v, want a ForbiddenError", what, err)
		}
	}
	byName := *here
	byName.Addr, byName.Name = netip.Addr{}, parseName(t, "ok.example")
	conn, _, err := d.Dial(t.Context(), egress.Target{Addr: web, Through: &byName})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if asked := s.Asked(); len(asked) != 1 {
		t.Errorf("the proxy was asked for %v, want one destination", asked)
	}
}

// A proxy that says nothing is given up with the context or the timeout.
func TestSilentProxy(t *testing.T) {
	l, d := newPrivateLab(t, nil)
	s := &socksServer{TCPListener: listen(t, l, private1)} // and nobody accepts
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, _, err := d.Dial(ctx, egress.Target{Addr: netip.MustParseAddrPort("93.184.216.34:80"), Through: s.upstream("", "")})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want it cancelled", err)
	}
}

// Of the addresses of a name only those that are permitted are connected to.
func TestPermit(t *testing.T) {
	l, d := newPrivateLab(t, names{"two.example": {private3, private2}})
	ln := listen(t, l, private2)
	target := egress.Target{
		Name: parseName(t, "two.example"), Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(ln.Addr().(*net.TCPAddr).Port)),
		Permit: func(addr netip.Addr) bool { return addr == netip.MustParseAddr(private2) },
	}
	conn, remote, err := d.Dial(t.Context(), target)
	if err != nil || remote.String() != ln.Addr().String() {
		t.Fatalf("connected to %v, %v", remote, err)
	}
	conn.Close()
	target.Permit = func(netip.Addr) bool { return false }
	var failed *dial.Error
	if _, _, err = d.Dial(t.Context(), target); !errors.As(err, &failed) || failed.Kind != dial.Forbidden ||
		failed.Reason() != "the policy allows neither the name two.example nor its address "+private3 {
		t.Errorf("%v", err)
	}
	s := new(socksServer).start(t, l)
	target.Through, target.Permit = s.upstream("", ""), func(addr netip.Addr) bool { return addr == netip.MustParseAddr(private2) }
	conn, remote, err = d.Dial(t.Context(), target)
	if asked := s.Asked(); err != nil || remote.String() != ln.Addr().String() || asked[0] != ln.Addr().String() {
		t.Fatalf("through a proxy: connected to %v, asked for %v, %v", remote, asked, err)
	}
	conn.Close()
}
