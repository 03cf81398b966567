package dns

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// The same question gets the same reply, with its own id, and is observed each
// time; but under another policy, or for another sandbox, its own.
func TestAskedAgain(t *testing.T) {
	r := newRig(t, options{allow: []string{"example.com"}})
	ask := func(from, want string) {
		t.Helper()
		for range 3 { // the first fills the cache
			if got := summary(r.ask("udp", from, "example.com", wire.TypeA)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
	ask(alpha, "NOERROR example.com. A 93.184.216.34")
	ask(beta, "NOERROR example.com. A 93.184.216.34")
	r.mu.Lock()
	observed := len(r.queries)
	r.mu.Unlock()
	if observed != 6 {
		t.Errorf("%d queries were observed, want 6", observed)
	}
	r.setTenant(beta, egress.Tenant{Sandbox: "beta", Policy: compile(t, policy.Document{DenyOut: []string{policy.AllTraffic}}), Generation: 3, StrictDNS: true})
	ask(beta, "NXDOMAIN")
	if q := r.observed(); q.Verdict != policy.Deny || q.Generation != 3 {
		t.Errorf("observed %+v", q)
	}
	ask(alpha, "NOERROR example.com. A 93.184.216.34")
}

// Many datagrams at once are all answered, each with its id.
func TestManyAtOnce(t *testing.T) {
	const queries = 3 * batch
	r := newRig(t, options{allow: []string{"example.com"}})
	r.ask("udp", alpha, "example.com", wire.TypeA)
	conn := r.dial("udp", alpha)
	for id := range queries {
		name := fmt.Sprintf("evil%d.example.", id%7)
		if id%2 == 0 {
			name = "example.com."
		}
		packet := pack(t, new(wire.Msg).SetQuestion(name, wire.TypeA))
		binary.BigEndian.PutUint16(packet, uint16(id))
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	seen := make(map[uint16]bool)
	for buf := make([]byte, maxQuery); len(seen) < queries; {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("after %d replies: %v", len(seen), err)
		}
		var reply wire.Msg
		if err := reply.Unpack(buf[:n]); err != nil || len(reply.Answer) != 1 || seen[reply.Id] {
			t.Fatalf("%v, %v", &reply, err)
		}
		real := addressOf(reply.Answer[0]).String() == "93.184.216.34"
		if wantReal := reply.Id%2 == 0; real != wantReal {
			t.Errorf("got %v", &reply)
		}
		seen[reply.Id] = true
	}
}

// Replies are forgotten when a time to live in them becomes another, and when
// there are too many.
func TestMemos(t *testing.T) {
	began := time.Now()
	a := &Answer{received: began}
	for age, want := range map[time.Duration]time.Duration{
		0: time.Second, 999 * time.Millisecond: time.Second, time.Second: 2 * time.Second, 61500 * time.Millisecond: 62 * time.Second,
	} {
		if got := a.holds(began.Add(age)).Sub(began); got != want {
			t.Errorf("after %v it holds until %v, want %v", age, got, want)
		}
	}
	ms, tenant := make(memos), egress.Tenant{Sandbox: "alpha"}
	packet := func(n int) []byte { return fmt.Appendf(nil, "id%020d", n) }
	for n := range 10 * maxMemos {
		ms.put(packet(n), memo{tenant: tenant, until: began.Add(time.Second), reply: packet(n)})
		if m, ok := ms.get(tenant, packet(n), began); !ok || string(m.reply) != string(packet(n)) {
			t.Fatalf("reply %d is %q, %v", n, m.reply, ok)
		}
		if len(ms) > maxMemos {
			t.Fatalf("%d replies are kept", len(ms))
		}
	}
	last := packet(10*maxMemos - 1)
	if _, ok := ms.get(tenant, last, began.Add(time.Second)); ok {
		t.Error("a reply is given that does not hold any more")
	}
	if _, ok := ms.get(egress.Tenant{Sandbox: "alpha", Generation: 1}, last, began); ok {
		t.Error("a reply is given under another policy")
	}
	ms.put(packet(1), memo{tenant: tenant, until: began.Add(time.Second), reply: make([]byte, maxMemoSize+1)})
	if _, ok := ms.get(tenant, packet(1), began); ok {
		t.Error("a long reply is kept")
	}
}
