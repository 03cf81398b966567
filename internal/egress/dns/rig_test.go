package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Addresses of sandboxes, and one that no sandbox has.
const (
	alpha    = "127.0.0.11"
	beta     = "127.0.0.12"
	stranger = "127.0.0.99"
)

// hostileServer is an address of the internet at which tests serve DNS.
const hostileServer = "9.9.9.9:53"

func newLab(t *testing.T, records string) *lab.Lab {
	t.Helper()
	// The test's context would end before what uses the lab has ended.
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

// labNever is the table of the lab's node.
func labNever(t testing.TB) *policy.Never {
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

// labResolver asks from the lab's node.
func labResolver(t *testing.T, l *lab.Lab, server string) *Resolver {
	t.Helper()
	r, err := NewResolver(ResolverConfig{
		Upstreams: []netip.AddrPort{netip.MustParseAddrPort(server)},
		Never:     labNever(t),
		Dial:      l.Node.Dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// rig is a server on the lab's node, with sandboxes alpha and beta.
type rig struct {
	t      *testing.T
	lab    *lab.Lab
	server *Server
	addr   netip.AddrPort

	mu      sync.Mutex
	tenants map[netip.Addr]egress.Tenant
	queries []Query
}

type options struct {
	records  string
	upstream string   // lab.DNSServer if empty
	allow    []string // names that both sandboxes may ask for
	strict   bool
	limits   Limits
}

func newRig(t *testing.T, o options) *rig {
	t.Helper()
	if o.upstream == "" {
		o.upstream = lab.DNSServer
	}
	r := &rig{t: t, lab: newLab(t, o.records)}
	doc := policy.Document{AllowOut: o.allow, DenyOut: []string{policy.AllTraffic}}
	r.tenants = map[netip.Addr]egress.Tenant{
		netip.MustParseAddr(alpha): {Sandbox: "alpha", Policy: compile(t, doc), Generation: 1, StrictDNS: o.strict},
		netip.MustParseAddr(beta):  {Sandbox: "beta", Policy: compile(t, doc), Generation: 2, StrictDNS: o.strict},
	}
	err := r.lab.Node.Do(func() (err error) {
		r.server, err = NewServer(ServerConfig{
			Listen:   []netip.AddrPort{netip.AddrPortFrom(lab.NodeIP4, 53)},
			Tenants:  r,
			Resolver: labResolver(t, r.lab, o.upstream),
			Observer: r,
			Limits:   o.limits,
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r.addr = r.server.Addrs()[0]
	run(t, r.server)
	return r
}

func compile(t testing.TB, doc policy.Document) *policy.Policy {
	t.Helper()
	home, err := policy.NewHome(func(name string) bool { return strings.HasSuffix(name, ".moat.test") && name[0] == '3' }, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse(doc, policy.Options{Never: labNever(t), Home: home})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// parseName panics if a name is not one.
func parseName(text string) policy.Name {
	name, err := policy.ParseName(text)
	if err != nil {
		panic(err)
	}
	return name
}

// run runs the server until the test ends.
func run(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
}

// Tenant implements egress.Tenants.
func (r *rig) Tenant(src netip.Addr) (egress.Tenant, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.tenants[src]
	return t, ok
}

// setTenant gives an address to another sandbox.
func (r *rig) setTenant(src string, t egress.Tenant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tenants[netip.MustParseAddr(src)] = t
}

// ObserveQuery implements Observer.
func (r *rig) ObserveQuery(q Query) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queries = append(r.queries, q)
}

// observed returns what was observed last.
func (r *rig) observed() Query {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queries) == 0 {
		return Query{}
	}
	return r.queries[len(r.queries)-1]
}

// dial connects to the server from the address of a sandbox.
func (r *rig) dial(network, from string) net.Conn {
	r.t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
	if network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	var conn net.Conn
	err := r.lab.Node.Do(func() (err error) {
		conn, err = d.Dial(network, r.addr.String())
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// exchange sends a message and returns the reply, nil if the server closes the
// connection.
func (r *rig) exchange(network, from string, packet []byte) *wire.Msg {
	r.t.Helper()
	conn := r.dial(network, from)
	defer conn.Close()
	var got []byte
	if network == "tcp" {
		if err := writeMessage(conn, packet); err != nil {
			r.t.Fatal(err)
		}
		var err error
		if got, err = readMessage(conn, wire.MaxMsgSize); err != nil {
			return nil
		}
	} else {
		if _, err := conn.Write(packet); err != nil {
			r.t.Fatal(err)
		}
		got = make([]byte, wire.MaxMsgSize)
		n, err := conn.Read(got)
		if err != nil {
			r.t.Fatalf("no reply: %v", err)
		}
		got = got[:n]
	}
	var reply wire.Msg
	if err := reply.Unpack(got); err != nil {
		r.t.Fatalf("reply %x: %v", got, err)
	}
	return &reply
}

// ask sends an ordinary query with EDNS.
func (r *rig) ask(network, from, name string, qtype uint16) *wire.Msg {
	r.t.Helper()
	query := new(wire.Msg).SetQuestion(wire.Fqdn(name), qtype)
	query.SetEdns0(4096, false)
	reply := r.exchange(network, from, pack(r.t, query))
	if reply == nil || reply.Id != query.Id || !reply.Response {
		r.t.Fatalf("%s %s: got %v", wire.Type(qtype), name, reply)
	}
	return reply
}

func pack(t testing.TB, m *wire.Msg) []byte {
	t.Helper()
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// explanation returns the code and the text of the extended error in a reply.
func explanation(m *wire.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, option := range opt.Option {
			if ede, ok := option.(*wire.EDNS0_EDE); ok {
				return fmt.Sprintf("%d: %s", ede.InfoCode, ede.ExtraText)
			}
		}
	}
	return ""
}

// summary shows the code and the answer section of a reply.
func summary(m *wire.Msg) string {
	return strings.TrimSpace(wire.RcodeToString[m.Rcode] + " " + text(m.Answer))
}

// serveHostile serves DNS on the internet, at hostileServer, over UDP and TCP.
func serveHostile(t *testing.T, l *lab.Lab, handler wire.HandlerFunc) {
	t.Helper()
	packet, err := l.Internet.ListenPacket("udp", hostileServer)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := l.Internet.Listen("tcp", hostileServer)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*wire.Server{{PacketConn: packet, Handler: handler}, {Listener: stream, Handler: handler}} {
		ready, ended := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(ready) }
		go func() { ended <- s.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			<-ended
		})
	}
}
