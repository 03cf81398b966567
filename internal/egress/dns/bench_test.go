package dns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// newBench returns a server on loopback for one sandbox without limits, which
// knows example.com from its cache and may not ask for evil.example.
func newBench(b *testing.B) (*Server, egress.Tenant) {
	b.Helper()
	u := &upstreams{answer: func(_, _ string, q *wire.Msg) *wire.Msg {
		return reply(q, q.Question[0].Name+" 86400 IN A 93.184.216.34")
	}}
	doc := policy.Document{AllowOut: []string{"example.com"}, DenyOut: []string{policy.AllTraffic}}
	tenant := egress.Tenant{Sandbox: "alpha", Policy: compile(b, doc)}
	s, err := NewServer(ServerConfig{
		Listen:   []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")},
		Tenants:  tenantsFunc(func(netip.Addr) (egress.Tenant, bool) { return tenant, true }),
		Resolver: u.newResolver(b, serverA),
		Limits:   Limits{PerSecond: 1 << 30, Burst: 1 << 30},
	})
	if err != nil {
		b.Fatal(err)
	}
	return s, tenant
}

// BenchmarkReply is the work for one query without the sockets.
func BenchmarkReply(b *testing.B) {
	for _, name := range []string{"example.com.", "evil.example."} {
		b.Run(name, func(b *testing.B) {
			s, tenant := newBench(b)
			defer s.Close()
			packet := pack(b, new(wire.Msg).SetQuestion(name, wire.TypeA))
			c := s.clients.of("alpha", time.Now())
			b.ReportAllocs()
			for b.Loop() {
				if s.replyTo(b.Context(), tenant, c, packet) == nil {
					b.Fatal("no reply")
				}
			}
		})
	}
}

// BenchmarkServer is answers per second over UDP, with 16 clients that wait
// for each answer, and the time that one waits.
func BenchmarkServer(b *testing.B) {
	for _, name := range []string{"example.com.", "evil.example."} {
		b.Run(name, func(b *testing.B) {
			s, _ := newBench(b)
			run(b, s)
			packet := pack(b, new(wire.Msg).SetQuestion(name, wire.TypeA))
			const clients = 16
			waited := make([][]time.Duration, clients)
			var all sync.WaitGroup
			b.ResetTimer()
			for i := range clients {
				all.Go(func() { waited[i] = askOften(b, s.Addrs()[0], packet, b.N/clients+1) })
			}
			all.Wait()
			b.StopTimer()
			sorted := slices.Concat(waited...)
			slices.Sort(sorted)
			b.ReportMetric(float64(len(sorted))/b.Elapsed().Seconds(), "answers/s")
			b.ReportMetric(float64(sorted[len(sorted)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(sorted[len(sorted)*99/100].Microseconds()), "p99-µs")
		})
	}
}

func askOften(b *testing.B, addr netip.AddrPort, packet []byte, times int) (waited []time.Duration) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		b.Error(err)
		return nil
	}
	defer conn.Close()
	buf := make([]byte, 512)
	for range times {
		began := time.Now()
		_ = conn.SetReadDeadline(began.Add(5 * time.Second))
		if _, err = conn.Write(packet); err == nil {
			_, err = conn.Read(buf)
		}
		if err != nil {
			b.Error(fmt.Errorf("ask: %w", err))
			return nil
		}
		waited = append(waited, time.Since(began))
	}
	return waited
}
