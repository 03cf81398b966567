package ingress

import (
	"hash/maphash"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// strangers bounds how often one client address asks for sandboxes that do not
// exist. Its memory is constant: addresses whose hashes meet share an
// allowance, which costs them nothing but another refusal.
type strangers struct {
	perMinute float64 // which is also how many may come at once
	seed      maphash.Seed
	start     time.Time

	mu      sync.Mutex
	buckets [1 << 13]bucket // guarded by mu
}

// bucket is what an address has used up at a time.
type bucket struct {
	used float64
	at   time.Duration // since start
}

func newStrangers(perMinute int) *strangers {
	return &strangers{perMinute: float64(perMinute), seed: maphash.MakeSeed(), start: time.Now()}
}

// allow counts one question in and reports whether it may be answered; if not,
// it says when the next one may.
func (s *strangers) allow(client netip.Addr) (wait time.Duration, ok bool) {
	now := time.Since(s.start)
	b := &s.buckets[maphash.Comparable(s.seed, neighbourhood(client))%uint64(len(s.buckets))]
	s.mu.Lock()
	defer s.mu.Unlock()
	b.used = max(b.used-(now-b.at).Minutes()*s.perMinute, 0)
	b.at = now
	if over := b.used + 1 - s.perMinute; over > 0 {
		return time.Duration(over / s.perMinute * float64(time.Minute)), false
	}
	b.used++
	return 0, true
}

// neighbourhood is what one client has at its disposal: an IPv4 address, or a
// whole /64 of IPv6.
func neighbourhood(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap(); addr.Is4() {
		return addr
	}
	wide, err := addr.WithZone("").Prefix(64)
	if err != nil {
		return netip.Addr{} // of a client without an address
	}
	return wide.Addr()
}

// clientAddr is the address a request came from; invalid on a unix socket.
func clientAddr(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

// clients counts the connections of clients and refuses those beyond a limit.
type clients struct {
	limit    int64
	http     atomic.Int64 // that speak HTTP
	upgraded atomic.Int64 // that do not any more
	refused  atomic.Uint64
}

func (c *clients) count() int64 { return c.http.Load() + c.upgraded.Load() }

// enter counts a connection, and reports whether there was room for it.
func (c *clients) enter() bool {
	if c.http.Add(1)+c.upgraded.Load() <= c.limit {
		return true
	}
	c.http.Add(-1)
	c.refused.Add(1)
	return false
}

func (c *clients) leave() { c.http.Add(-1) }

// watch is net/http's ConnState hook. Its connections have entered before they
// came to it.
func (c *clients) watch(_ net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		c.leave()
	}
}
