package dns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
)

func TestAllowedNamesResolve(t *testing.T) {
	r := newRig(t, options{
		allow: []string{"example.com", "www.example.com", "*.google.com"},
		records: `
big.google.com. 60 IN TXT "` + strings.Repeat("x", 250) + `" "` + strings.Repeat("y", 250) + `"
big.google.com. 60 IN TXT "` + strings.Repeat("z", 250) + `" "` + strings.Repeat("z", 250) + `" "` + strings.Repeat("z", 250) + `"
`})
	for _, network := range []string{"udp", "tcp"} {
		for _, test := range []struct {
			name  string
			qtype uint16
			want  string
		}{
			{"example.com", wire.TypeA, "NOERROR example.com. A 93.184.216.34"},
			{"eXaMpLe.CoM", wire.TypeA, "NOERROR eXaMpLe.CoM. A 93.184.216.34"},
			{"example.com", wire.TypeAAAA, "NOERROR example.com. AAAA 2606:2800:220:1::34"},
			{"www.example.com", wire.TypeA, "NOERROR www.example.com. CNAME example.com.; example.com. A 93.184.216.34"},
			{"mail.google.com", wire.TypeA, "NOERROR mail.google.com. A 142.250.74.46"},
			{"mail.google.com", wire.TypeAAAA, "NOERROR"},
			{"example.com", wire.TypeMX, "NOERROR"},
		} {
			if got := summary(r.ask(network, alpha, test.name, test.qtype)); got != test.want {
				t.Errorf("%s %s:\n got %s\nwant %s", network, test.name, got, test.want)
			}
		}
	}
	if q := r.observed(); q.Sandbox != "alpha" || q.Generation != 1 || q.Name != "example.com" || q.Type != "MX" || q.Verdict != policy.Allow || q.Entry != "example.com" {
		t.Errorf("observed %+v", q)
	}
	if reply := r.ask("udp", alpha, "big.google.com", wire.TypeTXT); !reply.Truncated || reply.Len() > udpSize {
		t.Errorf("%d bytes over UDP, truncated %v", reply.Len(), reply.Truncated)
	}
	if reply := r.ask("tcp", alpha, "big.google.com", wire.TypeTXT); reply.Truncated || len(reply.Answer) != 2 {
		t.Errorf("over TCP: truncated %v, %d records", reply.Truncated, len(reply.Answer))
	}
}

// A public URL of the server itself is answered at home, if it may be reached.
func TestPublicURLsResolveToHome(t *testing.T) {
	r := newRig(t, options{allow: []string{"3000-abc.moat.test", "api.moat.test"}, records: "*.moat.test. 60 IN A 93.184.216.34\n"})
	for _, test := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"3000-ABC.moat.test", wire.TypeA, "NOERROR 3000-ABC.moat.test. A 198.19.255.2"},
		{"3000-abc.moat.test", wire.TypeAAAA, "NOERROR 3000-abc.moat.test. AAAA fd6d:6f61:7400:1::2"},
		{"3000-abc.moat.test", wire.TypeHTTPS, "NOERROR"},
		{"api.moat.test", wire.TypeA, "NOERROR api.moat.test. A 93.184.216.34"}, // as name servers have it
	} {
		if got := summary(r.ask("udp", alpha, test.name, test.qtype)); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, test.want)
		}
	}
	for _, q := range r.lab.Queries() {
		if strings.HasPrefix(q.Name, "3") {
			t.Errorf("left the node: %s %s", q.Name, q.Type)
		}
	}
	if reply := r.ask("udp", alpha, "3000-def.moat.test", wire.TypeA); len(reply.Answer) != 1 || !policy.Synthetic().Contains(netip.MustParseAddr(reply.Answer[0].(*wire.A).A.String())) {
		t.Errorf("one that is not allowed: %v", reply)
	}
}

func TestForbiddenNamesResolveToNowhere(t *testing.T) {
	r := newRig(t, options{allow: []string{"example.com"}})
	addrOf := func(sandbox, name string) netip.Addr {
		t.Helper()
		reply := r.ask("udp", sandbox, name, wire.TypeA)
		if len(reply.Answer) != 1 || reply.Answer[0].Header().Ttl != 30 || reply.Answer[0].Header().Name != name {
			t.Fatalf("%s: got %v", name, reply)
		}
		addr := addressOf(reply.Answer[0])
		if !policy.Synthetic().Contains(addr) || !labNever(t).Contains(addr) {
			t.Fatalf("%s is at %v", name, addr)
		}
		return addr
	}
	evil, other := addrOf(alpha, "evil.example."), addrOf(alpha, "Other.example.")
	if evil == other {
		t.Errorf("two names are at %v", evil)
	}
	if again := addrOf(alpha, "EVIL.example."); again != evil {
		t.Errorf("the name has moved from %v to %v", evil, again)
	}
	for _, test := range []struct {
		sandbox string
		addr    netip.Addr
		want    string
	}{
		{"alpha", evil, "evil.example"},
		{"alpha", other, "other.example"},
		{"beta", evil, ""},
		{"nobody", evil, ""},
		{"alpha", netip.MustParseAddr("1.1.1.1"), ""},
		{"alpha", netip.MustParseAddr("::1"), ""},
		{"alpha", netip.Addr{}, ""},
	} {
		if got, ok := r.server.Name(test.sandbox, test.addr); got != test.want || ok != (test.want != "") {
			t.Errorf("%s knows %v as %q, %v; want %q", test.sandbox, test.addr, got, ok, test.want)
		}
	}
	for _, qtype := range []uint16{wire.TypeAAAA, wire.TypeHTTPS, wire.TypeTXT, wire.TypeCNAME, wire.TypeNULL} {
		if got := summary(r.ask("tcp", alpha, "evil.example", qtype)); got != "NOERROR" {
			t.Errorf("%v: got %s", wire.Type(qtype), got)
		}
	}
	reply := r.ask("udp", alpha, "evil.example", wire.TypeA)
	if got := explanation(reply); !strings.HasPrefix(got, "4: ") || got != "4: "+r.observed().Reason {
		t.Errorf("explained as %q", got)
	}
	if q := r.observed(); q.Verdict != policy.Deny || q.Rule != policy.RuleDenyOut.String() || q.Name != "evil.example" || q.Type != "A" {
		t.Errorf("observed %+v", q)
	}
}

func TestStrictSandboxesAreToldThatForbiddenNamesDoNotExist(t *testing.T) {
	r := newRig(t, options{allow: []string{"example.com"}, strict: true})
	for _, qtype := range []uint16{wire.TypeA, wire.TypeAAAA, wire.TypeTXT} {
		reply := r.ask("udp", alpha, "evil.example", qtype)
		if reply.Rcode != wire.RcodeNameError || len(reply.Answer) != 0 || explanation(reply) != "15: "+r.observed().Reason {
			t.Errorf("%v: got %v", wire.Type(qtype), reply)
		}
	}
	if got := summary(r.ask("udp", alpha, "example.com", wire.TypeA)); got != "NOERROR example.com. A 93.184.216.34" {
		t.Errorf("an allowed name: got %s", got)
	}
}

func TestQueriesThatAreRefused(t *testing.T) {
	r := newRig(t, options{allow: []string{"*"}})
	query := func(change func(m *wire.Msg)) []byte {
		m := new(wire.Msg).SetQuestion("example.com.", wire.TypeA)
		change(m)
		return pack(t, m)
	}
	second := wire.Question{Name: "evil.example.", Qtype: wire.TypeA, Qclass: wire.ClassINET}
	for _, test := range []struct {
		name   string
		packet []byte
		want   int
	}{
		{"another opcode", query(func(m *wire.Msg) { m.Opcode = wire.OpcodeNotify }), wire.RcodeNotImplemented},
		{"an update", pack(t, new(wire.Msg).SetUpdate("example.com.")), wire.RcodeNotImplemented},
		{"two questions", query(func(m *wire.Msg) { m.Question = append(m.Question, second) }), wire.RcodeFormatError},
		{"no question", query(func(m *wire.Msg) { m.Question = nil }), wire.RcodeFormatError},
		{"an answer in it", query(func(m *wire.Msg) { m.Answer = parseRecords("example.com. 1 IN A 1.1.1.1") }), wire.RcodeFormatError},
		{"an authority in it", query(func(m *wire.Msg) { m.Ns = parseRecords("example.com. 1 IN NS a.") }), wire.RcodeFormatError},
		{"a record beside EDNS", query(func(m *wire.Msg) { m.Extra = parseRecords("example.com. 1 IN A 1.1.1.1") }), wire.RcodeFormatError},
		{"two EDNS", query(func(m *wire.Msg) { m.SetEdns0(1232, false); m.Extra = append(m.Extra, m.Extra[0]) }), wire.RcodeFormatError},
		{"cut off", query(func(*wire.Msg) {})[:20], wire.RcodeFormatError},
		{"EDNS of the future", query(func(m *wire.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), wire.RcodeBadVers},
		{"class CHAOS", query(func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassCHAOS }), wire.RcodeRefused},
		{"class ANY", query(func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassANY }), wire.RcodeRefused},
		{"type ANY", query(func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeANY }), wire.RcodeRefused},
		{"a zone transfer", query(func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeAXFR }), wire.RcodeRefused},
		{"type 0", query(func(m *wire.Msg) { m.Question[0].Qtype = 0 }), wire.RcodeRefused},
		{"the root", query(func(m *wire.Msg) { m.Question[0] = wire.Question{Name: ".", Qtype: wire.TypeNS, Qclass: 1} }), wire.RcodeRefused},
		{"a name that is none", query(func(m *wire.Msg) { m.Question[0].Name = `a\000b.example.com.` }), wire.RcodeNameError},
		{"a dot inside a label", query(func(m *wire.Msg) { m.Question[0].Name = `www\.example.com.` }), wire.RcodeNameError},
	} {
		for _, network := range []string{"udp", "tcp"} {
			reply := r.exchange(network, alpha, test.packet)
			if reply == nil || reply.Rcode != test.want || len(reply.Answer) != 0 {
				t.Errorf("%s over %s: got %v, want %s", test.name, network, reply, wire.RcodeToString[test.want])
			}
			if q := r.observed(); q.Verdict != policy.Deny || q.Rule != RuleQuery || q.Reason == "" {
				t.Errorf("%s over %s: observed %+v", test.name, network, q)
			}
		}
	}
	if asked := r.lab.Queries(); len(asked) != 0 {
		t.Errorf("the internet was asked %v", asked)
	}
}

// A reply to a reply could go on for ever.
func TestWhatIsNoQueryGetsNoReply(t *testing.T) {
	r := newRig(t, options{allow: []string{"*"}})
	answered := new(wire.Msg).SetQuestion("example.com.", wire.TypeA)
	answered.Response = true
	for name, packet := range map[string][]byte{
		"a reply":   pack(t, answered),
		"too short": {1, 2, 3},
		"nothing":   {},
	} {
		if reply := r.exchange("tcp", alpha, packet); reply != nil {
			t.Errorf("%s over TCP: got %v", name, reply)
		}
		conn := r.dial("udp", alpha)
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
		// What comes first is the reply to what was asked last.
		query := new(wire.Msg).SetQuestion("example.com.", wire.TypeA)
		if _, err := conn.Write(pack(t, query)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		var reply wire.Msg
		if err != nil || reply.Unpack(buf[:n]) != nil || reply.Id != query.Id {
			t.Errorf("%s over UDP: got %v, %v", name, &reply, err)
		}
	}
}

func TestStrangersAreIgnored(t *testing.T) {
	r := newRig(t, options{allow: []string{"*"}})
	query := pack(t, new(wire.Msg).SetQuestion("example.com.", wire.TypeA))
	udp := r.dial("udp", stranger)
	if _, err := udp.Write(query); err != nil {
		t.Fatal(err)
	}
	tcp := r.dial("tcp", stranger)
	if _, err := tcp.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("over TCP: got %v, want the end", err)
	}
	r.ask("udp", alpha, "example.com", wire.TypeA) // came later and is answered
	_ = udp.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := udp.Read(make([]byte, 512)); err == nil {
		t.Errorf("over UDP: got %d bytes", n)
	}
	if asked := r.lab.Queries(); len(asked) != 1 {
		t.Errorf("the internet was asked %v", asked)
	}
}

// Attack 27, for DNS.
func TestAttack27OneSandboxCannotExhaustTheServer(t *testing.T) {
	r := newRig(t, options{allow: []string{"*"}, limits: Limits{PerSecond: 1, Burst: 5, Connections: 2}})
	codes := make(map[int]int)
	for range 9 {
		codes[r.ask("udp", alpha, "example.com", wire.TypeA).Rcode]++
	}
	if codes[wire.RcodeSuccess] < 5 || codes[wire.RcodeRefused] < 3 {
		t.Errorf("got codes %v, want about 5 answers and 4 refusals", codes)
	}
	if q := r.observed(); q.Rule != RuleQuery || q.Reason != overLimit.why || q.Name != "example.com" {
		t.Errorf("observed %+v", q)
	}
	for range 2 {
		r.dial("tcp", alpha) // says nothing
	}
	third := r.dial("tcp", alpha)
	_ = third.SetReadDeadline(time.Now().Add(idleTimeout / 2))
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a third connection is kept: %v", err)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := summary(r.ask(network, beta, "example.com", wire.TypeA)); got != "NOERROR example.com. A 93.184.216.34" {
			t.Errorf("the neighbour got %s over %s", got, network)
		}
	}
}

// Attack 12, for DNS: a message that never ends is not waited for.
func TestAttack12MessageThatNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{tenants: tenantsFunc(func(netip.Addr) (egress.Tenant, bool) {
			return egress.Tenant{Sandbox: "alpha"}, true
		})}
		s.clients = clients{limits: Limits{}.withDefaults(), byID: make(map[string]*client)}
		near, far := net.Pipe()
		defer near.Close()
		ended := make(chan struct{})
		began := time.Now()
		go func() {
			defer close(ended)
			s.serveStream(t.Context(), far, netip.MustParseAddr(alpha), "alpha", s.clients.of("alpha", began))
		}()
		message := []byte{0, 100, 1, 2, 3, 4, 5}
		for i := range message {
			if _, err := near.Write(message[i : i+1]); err != nil {
				break
			}
			time.Sleep(2 * time.Second)
		}
		<-ended
		if took := time.Since(began); took > idleTimeout+2*time.Second {
			t.Errorf("waited for %v", took)
		}
	})
}

// Attack 31: a connection does not survive its sandbox.
func TestAttack31AddressOfAnotherTenant(t *testing.T) {
	r := newRig(t, options{allow: []string{"example.com"}})
	conn := r.dial("tcp", alpha)
	query := pack(t, new(wire.Msg).SetQuestion("example.com.", wire.TypeA))
	if err := writeMessage(conn, query); err != nil {
		t.Fatal(err)
	}
	if _, err := readMessage(conn, 4096); err != nil {
		t.Fatal(err)
	}
	r.setTenant(alpha, egress.Tenant{Sandbox: "gamma", Policy: compile(t, policy.Document{AllowOut: []string{"*"}})})
	if err := writeMessage(conn, query); err != nil {
		t.Fatal(err)
	}
	if _, err := readMessage(conn, 4096); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
}

// Attack 28: without a policy nothing resolves.
func TestAttack28NoPolicy(t *testing.T) {
	r := newRig(t, options{})
	r.setTenant(alpha, egress.Tenant{Sandbox: "alpha"})
	if got := summary(r.ask("udp", alpha, "example.com", wire.TypeAAAA)); got != "NOERROR" {
		t.Errorf("got %s", got)
	}
	if asked := r.lab.Queries(); len(asked) != 0 {
		t.Errorf("the internet was asked %v", asked)
	}
}

func TestUnavailableServersAreNotNamed(t *testing.T) {
	r := newRig(t, options{allow: []string{"*"}, upstream: "140.82.112.3:53"}) // does not listen
	reply := r.ask("udp", alpha, "example.com", wire.TypeA)
	if reply.Rcode != wire.RcodeServerFailure || explanation(reply) != "22: no name server answers" {
		t.Errorf("got %v", reply)
	}
	if q := r.observed(); q.Verdict != policy.Allow || !strings.HasSuffix(q.Reason, "; no name server answers") {
		t.Errorf("observed %+v", q)
	}
}

func TestRunEndsWithConnectionsOpen(t *testing.T) {
	l := newLab(t, "")
	tenants := tenantsFunc(func(netip.Addr) (egress.Tenant, bool) { return egress.Tenant{Sandbox: "alpha"}, true })
	s, err := NewServer(ServerConfig{
		Listen:   []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("[::1]:0")},
		Tenants:  tenants,
		Resolver: labResolver(t, l, lab.DNSServer),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	for _, addr := range s.Addrs() {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		defer func() {
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("the connection is still there")
			}
		}()
		if got, err := wire.Exchange(new(wire.Msg).SetQuestion("x.example.", wire.TypeA), addr.String()); err != nil || len(got.Answer) != 1 {
			t.Errorf("%v: got %v, %v", addr, got, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

type tenantsFunc func(netip.Addr) (egress.Tenant, bool)

func (f tenantsFunc) Tenant(src netip.Addr) (egress.Tenant, bool) { return f(src) }

func TestNewServerRefuses(t *testing.T) {
	loopback := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	tenants := tenantsFunc(func(netip.Addr) (egress.Tenant, bool) { return egress.Tenant{}, false })
	resolver := new(upstreams).newResolver(t, serverA)
	taken, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, cfg := range map[string]ServerConfig{
		"no address":       {Tenants: tenants, Resolver: resolver},
		"no tenants":       {Listen: loopback, Resolver: resolver},
		"no resolver":      {Listen: loopback, Tenants: tenants},
		"negative limit":   {Listen: loopback, Tenants: tenants, Resolver: resolver, Limits: Limits{Burst: -1}},
		"invalid address":  {Listen: make([]netip.AddrPort, 1), Tenants: tenants, Resolver: resolver},
		"every address":    {Listen: []netip.AddrPort{netip.MustParseAddrPort("[::]:0")}, Tenants: tenants, Resolver: resolver},
		"an address taken": {Listen: []netip.AddrPort{taken.LocalAddr().(*net.UDPAddr).AddrPort()}, Tenants: tenants, Resolver: resolver},
	} {
		if s, err := NewServer(cfg); err == nil || s != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
