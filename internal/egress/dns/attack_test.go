package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Attack 18: queries for names under the attacker's own zone carry data out.
// No packet at all may leave the node for any of them.
func TestAttack18Tunnelling(t *testing.T) {
	r := newRig(t, options{allow: []string{"example.com"}, limits: Limits{Burst: 10_000}})
	secret := strings.Repeat("a", 63)
	longest := strings.Join([]string{secret, secret, secret, secret[:40], "evil.example."}, ".")
	names := []string{
		"evil.example.", longest, "evilexample.com.", "example.com.evil.example.", "www.example.com.", "com.",
		`a\.example.com.`, `example\.com.`, `example.com\000.evil.example.`, `\255\254.evil.example.`, `a b.evil.example.`,
		"1.0.0.10.in-addr.arpa.", "8.8.8.8.in-addr.arpa.",
	}
	types := []uint16{
		wire.TypeA, wire.TypeAAAA, wire.TypeTXT, wire.TypeNULL, wire.TypeCNAME, wire.TypeMX, wire.TypeSRV, wire.TypePTR,
		wire.TypeHTTPS, wire.TypeNS, wire.TypeDS, wire.TypeAXFR, wire.TypeANY, 0, 65280,
	}
	for _, name := range names {
		for _, qtype := range types {
			for _, network := range []string{"udp", "tcp"} {
				query := new(wire.Msg).SetQuestion(name, qtype)
				query.SetEdns0(4096, true)
				query.IsEdns0().Option = []wire.EDNS0{&wire.EDNS0_LOCAL{Code: 65001, Data: []byte(secret)}}
				if reply := r.exchange(network, alpha, pack(t, query)); reply == nil || reply.Rcode == wire.RcodeServerFailure {
					t.Errorf("%s %s over %s: got %v", wire.Type(qtype), name, network, reply)
				}
			}
		}
	}
	if asked := r.lab.Queries(); len(asked) != 0 {
		t.Errorf("the internet was asked %v", asked)
	}
	if packets := r.lab.Packets(); len(packets) != 0 {
		t.Errorf("packets have left the node: %v", packets)
	}

	// An allowed name is asked for, without anything that the sandbox adds.
	query := new(wire.Msg).SetQuestion("ExAmPlE.cOm.", wire.TypeA)
	query.SetEdns0(4096, true)
	query.IsEdns0().Option = []wire.EDNS0{&wire.EDNS0_LOCAL{Code: 65001, Data: []byte(secret)}}
	r.exchange("udp", alpha, pack(t, query))
	if asked := r.lab.Queries(); len(asked) != 1 || asked[0].Name != "example.com." || asked[0].From.Addr() != lab.NodeIP4 {
		t.Errorf("the internet was asked %v, want one query for example.com from the node", asked)
	}
	if packets := r.lab.Packets(); len(packets) == 0 {
		t.Error("the capture does not see packets that leave")
	}
}

// Attack 18: nor may the sandbox choose how an allowed question is written.
func TestAttack18NothingOfTheSandboxIsSentOn(t *testing.T) {
	r := newRig(t, options{allow: []string{"example.com"}, upstream: hostileServer})
	seen := make(chan *wire.Msg, 100)
	serveHostile(t, r.lab, func(w wire.ResponseWriter, q *wire.Msg) {
		seen <- q
		_ = w.WriteMsg(reply(q, "example.com. 0 IN A 93.184.216.34"))
	})
	query := new(wire.Msg).SetQuestion("ExAmPlE.cOm.", wire.TypeA)
	query.CheckingDisabled, query.AuthenticatedData, query.RecursionDesired = true, true, false
	query.SetEdns0(4096, true)
	query.IsEdns0().Option = []wire.EDNS0{&wire.EDNS0_LOCAL{Code: 65001, Data: []byte("secret")}, &wire.EDNS0_SUBNET{
		Code: wire.EDNS0SUBNET, Family: 1, SourceNetmask: 32, Address: net.IPv4(1, 2, 3, 4),
	}}
	ids := make(map[uint16]bool)
	for range 20 {
		r.exchange("udp", alpha, pack(t, query))
		q := <-seen
		ids[q.Id] = true
		opt := q.IsEdns0()
		if q.Question[0].Name != "example.com." || q.CheckingDisabled || q.AuthenticatedData || !q.RecursionDesired ||
			opt == nil || len(opt.Option) != 0 || opt.Do() || len(q.Extra) != 1 {
			t.Errorf("the server was asked %v", q)
		}
	}
	if len(ids) < 19 {
		t.Errorf("20 queries had %d ids", len(ids))
	}
}

// Attacks 15 and 16: names that policies allow, but whose owner is hostile.
func TestAttack15Rebinding(t *testing.T) {
	r := newRig(t, options{allow: []string{"*.evil.example"}})
	for _, test := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"metadata.evil.example", wire.TypeA, "15: 169.254.169.254 is never reachable: link-local network and cloud metadata"},
		{"loopback.evil.example", wire.TypeA, "15: 127.0.0.1 is never reachable: loopback"},
		{"loopback.evil.example", wire.TypeAAAA, "15: ::1 is never reachable: loopback"},
		{"private.evil.example", wire.TypeA, "15: 10.0.0.1 is never reachable: private network"},
		{"mapped.evil.example", wire.TypeAAAA, "15: ::ffff:127.0.0.1 is never reachable: IPv4-mapped address"},
		{"unspecified.evil.example", wire.TypeA, "15: 0.0.0.0 is never reachable: the unspecified network"},
		{"unspecified.evil.example", wire.TypeAAAA, "15: :: is never reachable: the unspecified address"},
		{"node.evil.example", wire.TypeA, "15: 198.51.100.2 is never reachable: an address of this node"},
	} {
		reply := r.ask("udp", alpha, test.name, test.qtype)
		if got := summary(reply); got != "NOERROR" {
			t.Errorf("%s: got %s", test.name, got)
		}
		if got := explanation(reply); got != test.want {
			t.Errorf("%s: explained as %q, want %q", test.name, got, test.want)
		}
		if q := r.observed(); q.Verdict != policy.Deny || q.Rule != policy.RuleNever.String() || !strings.Contains(q.Reason, test.want[4:]) {
			t.Errorf("%s: observed %+v", test.name, q)
		}
	}
	// The answer changes with every question and is not cached.
	var found []string
	for range 6 {
		found = append(found, summary(r.ask("udp", alpha, "rebind.evil.example", wire.TypeA)))
	}
	slices.Sort(found)
	if got := slices.Compact(found); !slices.Equal(got, []string{"NOERROR", "NOERROR rebind.evil.example. A 45.60.70.80"}) {
		t.Errorf("got %q", got)
	}
}

func TestAttack15LookupForTheDialler(t *testing.T) {
	l := newLab(t, `
mixed.evil.example. 60 IN A 10.0.0.1
mixed.evil.example. 60 IN A 45.60.70.80
mixed.evil.example. 60 IN AAAA ::1
alias.evil.example. 60 IN CNAME metadata.evil.example.
`)
	r := labResolver(t, l, lab.DNSServer)
	addrs, _, err := r.Lookup(t.Context(), "mixed.evil.example")
	if err != nil || len(addrs) != 1 || addrs[0] != netip.MustParseAddr("45.60.70.80") {
		t.Errorf("got %v, %v", addrs, err)
	}
	// Attack 20: an alias to a forbidden place.
	for _, name := range []string{"metadata.evil.example", "alias.evil.example", "node.evil.example", "unspecified.evil.example"} {
		addrs, _, err := r.Lookup(t.Context(), name)
		var forbidden *egress.ForbiddenError
		if !errors.As(err, &forbidden) || len(addrs) != 0 {
			t.Errorf("%s: got %v, %v", name, addrs, err)
		}
	}
}

// Attack 20: what is not the answer to our question is not believed, and does
// not keep the answer away.
func TestAttack20SpoofedAnswers(t *testing.T) {
	const truth, lie = "example.com. 0 IN A 93.184.216.34", "example.com. 0 IN A 45.60.70.80"
	for name, forge := range map[string]func(q *wire.Msg) *wire.Msg{
		"wrong id": func(q *wire.Msg) *wire.Msg {
			m := reply(q, lie)
			m.Id++
			return m
		},
		"another name": func(q *wire.Msg) *wire.Msg {
			m := reply(q, lie)
			m.Question[0].Name = "example.net."
			return m
		},
		"another type": func(q *wire.Msg) *wire.Msg {
			m := reply(q, lie)
			m.Question[0].Qtype = wire.TypeAAAA
			return m
		},
		"another class": func(q *wire.Msg) *wire.Msg {
			m := reply(q, lie)
			m.Question[0].Qclass = wire.ClassCHAOS
			return m
		},
		"no question": func(q *wire.Msg) *wire.Msg {
			m := reply(q, lie)
			m.Question = nil
			return m
		},
		"two questions": func(q *wire.Msg) *wire.Msg {
			m := reply(q, lie)
			m.Question = append(m.Question, m.Question[0])
			return m
		},
		"a query": func(q *wire.Msg) *wire.Msg {
			m := reply(q, lie)
			m.Response = false
			return m
		},
		"another opcode": func(q *wire.Msg) *wire.Msg {
			m := reply(q, lie)
			m.Opcode = wire.OpcodeNotify
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "")
			r := labResolver(t, l, hostileServer)
			var overTCP atomic.Bool
			var lies atomic.Int32
			lies.Store(1)
			serveHostile(t, l, func(w wire.ResponseWriter, q *wire.Msg) {
				if w.LocalAddr().Network() == "udp" {
					for range lies.Load() {
						_ = w.WriteMsg(forge(q))
					}
				} else {
					overTCP.Store(true)
				}
				_ = w.WriteMsg(reply(q, truth))
			})
			if got := text(resolve(t, r, "example.com", wire.TypeA).Records); got != "example.com. A 93.184.216.34" || overTCP.Load() {
				t.Errorf("one lie: got %s, over TCP %v", got, overTCP.Load())
			}
			lies.Store(maxStrays)
			if got := text(resolve(t, r, "example.com", wire.TypeA).Records); got != "example.com. A 93.184.216.34" || !overTCP.Load() {
				t.Errorf("many lies: got %s, over TCP %v", got, overTCP.Load())
			}
		})
	}
}

// Attack 20: somebody else on the internet guesses id and port, and answers
// from another address or another port.
func TestAttack20AnswersFromElsewhere(t *testing.T) {
	l := newLab(t, "")
	r := labResolver(t, l, hostileServer)
	serveHostile(t, l, func(w wire.ResponseWriter, q *wire.Msg) {
		for _, from := range []string{"45.60.70.80:53", "9.9.9.9:5353"} {
			conn, err := l.Internet.ListenPacket("udp", from)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			packed, err := reply(q, "example.com. 60 IN A 45.60.70.80").Pack()
			if err == nil {
				_, err = conn.WriteTo(packed, w.RemoteAddr())
			}
			if err != nil {
				t.Error(err)
			}
		}
		_ = w.WriteMsg(reply(q, "example.com. 60 IN A 93.184.216.34"))
	})
	if got := text(resolve(t, r, "example.com", wire.TypeA).Records); got != "example.com. A 93.184.216.34" {
		t.Errorf("got %s", got)
	}
}

// Attack 20: records about other names that ride along are not remembered.
func TestAttack20PoisonedCache(t *testing.T) {
	l := newLab(t, "")
	r := labResolver(t, l, hostileServer)
	serveHostile(t, l, func(w wire.ResponseWriter, q *wire.Msg) {
		m := reply(q, q.Question[0].Name+" 60 IN A 93.184.216.34")
		if q.Question[0].Name == "evil.example." {
			m = reply(q, "evil.example. 60 IN CNAME github.com.", "github.com. 60 IN A 45.60.70.80", "bank.example. 60 IN A 45.60.70.80")
			m.Ns = parseRecords("github.com. 60 IN NS ns.evil.example.")
			m.Extra = parseRecords("github.com. 60 IN A 45.60.70.80")
		}
		_ = w.WriteMsg(m)
	})
	resolve(t, r, "evil.example", wire.TypeA)
	for _, name := range []string{"github.com", "bank.example"} {
		if got := text(resolve(t, r, name, wire.TypeA).Records); got != name+". A 93.184.216.34" {
			t.Errorf("got %s", got)
		}
	}
}

// Every question comes from a port of its own.
func TestAttack20RandomPorts(t *testing.T) {
	r := newRig(t, options{allow: []string{"*"}})
	for i := range 30 {
		r.ask("udp", alpha, fmt.Sprintf("host%d.google.com", i), wire.TypeA)
	}
	ports := make(map[uint16]bool)
	for _, q := range r.lab.Queries() {
		ports[q.From.Port()] = true
	}
	if len(ports) < 28 {
		t.Errorf("30 queries came from %d ports", len(ports))
	}
}
