package dns

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Explanations never make a reply longer than the smallest datagram.
func TestLongestNameAndExplanationFit(t *testing.T) {
	label := strings.Repeat("a", 63)
	name := strings.Join([]string{label, label, label, label[:61]}, ".") + "."
	query := new(wire.Msg).SetQuestion(name, wire.TypeA)
	query.SetEdns0(0, false)
	m, problem := parseMessage(pack(t, query))
	if m == nil || problem.why != "" || m.size != wire.MinMsgSize {
		t.Fatalf("got %+v, %+v", m, problem)
	}
	reply := m.reply(wire.RcodeSuccess)
	reply.Answer = parseRecords(name + " 30 IN A 198.19.0.1")
	explain(reply, wire.ExtendedErrorCodeBlocked, "x"+strings.Repeat("é", 300))
	packed := m.pack(reply, m.size)
	var got wire.Msg
	if err := got.Unpack(packed); err != nil || got.Truncated || len(got.Answer) != 1 || len(packed) > wire.MinMsgSize {
		t.Errorf("%d bytes: %v, %v", len(packed), &got, err)
	}
	if text := explanation(&got); len(text) < maxText-10 || strings.ContainsRune(text, '\uFFFD') {
		t.Errorf("explained as %q", text)
	}
}

func TestWhatCannotBePackedIsAFailure(t *testing.T) {
	m := &message{id: 7, question: []wire.Question{{Name: "example.com.", Qtype: wire.TypeA, Qclass: wire.ClassINET}}}
	reply := m.reply(wire.RcodeSuccess)
	reply.Answer = []wire.RR{&wire.A{Hdr: wire.RR_Header{Name: "no dot", Rrtype: wire.TypeA, Class: wire.ClassINET}, A: net.IP{1, 2, 3}}}
	var got wire.Msg
	if err := got.Unpack(m.pack(reply, 512)); err != nil || got.Id != 7 || got.Rcode != wire.RcodeServerFailure || len(got.Answer) != 0 {
		t.Errorf("got %v, %v", &got, err)
	}
}

// FuzzMessage feeds the server with whatever sandboxes may send.
func FuzzMessage(f *testing.F) {
	add := func(change func(m *wire.Msg)) {
		m := new(wire.Msg).SetQuestion("example.com.", wire.TypeA)
		change(m)
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	add(func(*wire.Msg) {})
	add(func(m *wire.Msg) { m.Question[0].Name = "evil.example." })
	add(func(m *wire.Msg) { m.SetEdns0(4096, true) })
	add(func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeTXT; m.Compress = true })
	add(func(m *wire.Msg) { m.Question = append(m.Question, m.Question[0]) })
	add(func(m *wire.Msg) { m.Response = true })
	add(func(m *wire.Msg) { m.Question[0].Name = `a\000\255.evil.example.` })

	u := &upstreams{answer: func(_, _ string, q *wire.Msg) *wire.Msg {
		return reply(q, q.Question[0].Name+" 0 IN A 93.184.216.34", q.Question[0].Name+" 0 IN A 10.0.0.1")
	}}
	resolver := u.newResolver(f, serverA)
	s := &Server{resolver: resolver, log: slog.New(slog.DiscardHandler)}
	s.clients = clients{limits: Limits{PerSecond: 1 << 30, Burst: 1 << 30}.withDefaults(), byID: make(map[string]*client)}
	tenant := egress.Tenant{Sandbox: "alpha", Policy: compile(f, policy.Document{
		AllowOut: []string{"example.com"}, DenyOut: []string{policy.AllTraffic},
	})}
	f.Fuzz(func(t *testing.T, packet []byte) {
		packed := s.replyTo(t.Context(), tenant, s.clients.of("alpha", time.Now()), packet)
		for _, asked := range u.queries() {
			if !strings.HasSuffix(asked, " example.com.") {
				t.Errorf("the internet was asked %q", asked)
			}
		}
		if packed == nil {
			if len(packet) >= headerSize && packet[2]&0x80 == 0 {
				t.Error("no reply")
			}
			return
		}
		checkReply(t, packet, packed)
	})
}

func checkReply(t *testing.T, packet, packed []byte) {
	t.Helper()
	var got wire.Msg
	if err := got.Unpack(packed); err != nil {
		t.Fatalf("the reply %x: %v", packed, err)
	}
	if !got.Response || got.Id != binary.BigEndian.Uint16(packet) {
		t.Errorf("%d bytes: %v", len(packed), &got)
	}
	var asked wire.Msg
	if asked.Unpack(packet) == nil && got.Rcode != wire.RcodeFormatError && got.Rcode != wire.RcodeNotImplemented &&
		!slices.Equal(got.Question, asked.Question) {
		t.Errorf("asked %v, the reply is about %v", asked.Question, got.Question)
	}
	for _, rr := range got.Answer {
		addr := addressOf(rr)
		if addr != netip.MustParseAddr("93.184.216.34") && !policy.Synthetic().Contains(addr) {
			t.Errorf("the answer is %v", rr)
		}
		if policy.Synthetic().Contains(addr) == strings.EqualFold(got.Question[0].Name, "example.com.") {
			t.Errorf("%s is at %v", got.Question[0].Name, addr)
		}
	}
}
