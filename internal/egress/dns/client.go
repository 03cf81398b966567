package dns

import (
	"net/netip"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/egress"
)

// Limits bound what one sandbox may ask of the server. Zero fields have their
// defaults.
type Limits struct {
	// PerSecond and Burst bound the rate of queries; 100 and 200.
	PerSecond, Burst int
	// Concurrent bounds the queries that wait for an answer; 128.
	Concurrent int
	// Connections bounds the open TCP connections; 16.
	Connections int
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		value  *int
		normal int
	}{{&l.PerSecond, 100}, {&l.Burst, 200}, {&l.Concurrent, 128}, {&l.Connections, 16}} {
		if *f.value == 0 {
			*f.value = f.normal
		}
	}
	return l
}

// forgetAfter is how long a sandbox must have been silent before what the
// server knows about it is dropped.
const forgetAfter = time.Hour

// clients holds what the server keeps for each sandbox, by the sandbox's id:
// addresses are used again, ids are not.
type clients struct {
	limits Limits

	mu   sync.Mutex
	byID map[string]*client
}

// of returns the state of a sandbox. The first query of a new one pays for
// dropping the state of those that are gone.
func (cs *clients) of(sandbox string, now time.Time) *client {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.byID[sandbox]; c != nil {
		c.touch(now)
		return c
	}
	for id, c := range cs.byID {
		if c.idle(now) {
			delete(cs.byID, id)
		}
	}
	c := &client{limits: cs.limits, seen: now, names: newSynthetic(), memos: make(memos)}
	c.queries.fill(cs.limits.Burst, now)
	c.refusals.fill(cs.limits.Burst, now)
	cs.byID[sandbox] = c
	return c
}

// find returns nil for a sandbox that has not asked for anything.
func (cs *clients) find(sandbox string, now time.Time) *client {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.byID[sandbox]
	if c != nil {
		c.touch(now)
	}
	return c
}

// client is what the server keeps for one sandbox.
type client struct {
	limits Limits

	mu       sync.Mutex
	seen     time.Time
	queries  bucket // to be answered
	refusals bucket // to be told that there were too many; the rest is dropped
	waiting  int
	conns    int
	names    *synthetic
	memos    memos
}

// admission is what happens to a query before anybody has looked into it.
type admission uint8

const (
	dropped admission = iota
	refused
	admitted
)

// admit decides whether there is room for one more query. The admission must be
// released when the query is answered.
func (c *client) admit(now time.Time) admission {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.waiting < c.limits.Concurrent && c.queries.take(c.limits, now):
		c.waiting++
		return admitted
	case c.refusals.take(c.limits, now):
		return refused
	}
	return dropped
}

// recall admits a query whose reply is at hand. It need not be released. False
// means that it was not admitted, or that there is no such reply.
func (c *client) recall(t egress.Tenant, packet []byte, now time.Time) (memo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.memos.get(t, packet, now)
	return m, ok && c.waiting < c.limits.Concurrent && c.queries.take(c.limits, now)
}

// remember keeps a reply for those who ask the same.
func (c *client) remember(packet []byte, m memo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memos.put(packet, m)
}

func (c *client) release(a admission) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a == admitted {
		c.waiting--
	}
}

// connect counts a TCP connection, which must be disconnected, or says that
// there are too many.
func (c *client) connect() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns >= c.limits.Connections {
		return false
	}
	c.conns++
	return true
}

func (c *client) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns--
}

// pretend returns the address that stands for a forbidden name.
func (c *client) pretend(name string, now time.Time) (netip.Addr, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names.address(name, now)
}

// pretended returns the name that an address stands for.
func (c *client) pretended(addr netip.Addr) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names.name(addr)
}

func (c *client) touch(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = now
}

func (c *client) idle(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting == 0 && c.conns == 0 && now.Sub(c.seen) > forgetAfter
}

// bucket is a token bucket.
type bucket struct {
	tokens float64
	filled time.Time
}

func (b *bucket) fill(burst int, now time.Time) { b.tokens, b.filled = float64(burst), now }

func (b *bucket) take(l Limits, now time.Time) bool {
	b.tokens += now.Sub(b.filled).Seconds() * float64(l.PerSecond)
	b.tokens = min(b.tokens, float64(l.Burst))
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
