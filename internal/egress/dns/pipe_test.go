package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/policy"
)

// upstreams are name servers at the other end of pipes, so that tests of time
// can run in a bubble of testing/synctest.
type upstreams struct {
	// answer returns the reply of a server; nil stands for silence.
	answer func(server, network string, query *wire.Msg) *wire.Msg

	mu    sync.Mutex
	asked []string // "udp 192.0.2.1:53 A example.com."
}

func (u *upstreams) dial(_ context.Context, network, address string) (net.Conn, error) {
	near, far := net.Pipe()
	go u.serve(far, network, address)
	return near, nil
}

// serve ends when the other end of the pipe is closed.
func (u *upstreams) serve(conn net.Conn, network, address string) {
	defer conn.Close()
	buf := make([]byte, wire.MaxMsgSize)
	for {
		packet := buf
		var err error
		if network == "tcp" {
			packet, err = readMessage(conn, len(buf))
		} else {
			var n int
			n, err = conn.Read(buf)
			packet = buf[:n]
		}
		var query wire.Msg
		if err != nil || query.Unpack(packet) != nil {
			return
		}
		q := query.Question[0]
		u.mu.Lock()
		u.asked = append(u.asked, strings.Join([]string{network, address, wire.Type(q.Qtype).String(), q.Name}, " "))
		u.mu.Unlock()
		reply := u.answer(address, network, &query)
		if reply == nil {
			continue
		}
		packed, err := reply.Pack()
		if err != nil {
			return
		}
		if network == "tcp" {
			err = writeMessage(conn, packed)
		} else {
			_, err = conn.Write(packed)
		}
		if err != nil {
			return
		}
	}
}

// queries returns what the servers were asked since the last call.
func (u *upstreams) queries() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	asked := u.asked
	u.asked = nil
	return asked
}

// reply is a reply with these records in its answer section.
func reply(query *wire.Msg, records ...string) *wire.Msg {
	m := new(wire.Msg).SetReply(query)
	m.RecursionAvailable = true
	m.Answer = parseRecords(records...)
	return m
}

// parseRecords panics if a record is not written well.
func parseRecords(records ...string) (parsed []wire.RR) {
	for _, text := range records {
		rr, err := wire.NewRR(text)
		if err != nil {
			panic(err)
		}
		parsed = append(parsed, rr)
	}
	return parsed
}

func builtinNever(t testing.TB) *policy.Never {
	t.Helper()
	never, err := policy.NewNever(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return never
}

// newResolver returns a resolver that asks the servers u, and is closed at the
// end of the test.
func (u *upstreams) newResolver(t testing.TB, servers ...string) *Resolver {
	t.Helper()
	cfg := ResolverConfig{Never: builtinNever(t), Dial: u.dial}
	for _, server := range servers {
		cfg.Upstreams = append(cfg.Upstreams, netip.MustParseAddrPort(server))
	}
	r, err := NewResolver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close the resolver: %v", err)
		}
	})
	return r
}
