// Package dns resolves names on behalf of sandboxes and lets nothing else out
// of the node through DNS.
//
// A Server answers the queries of sandboxes. A name that the sandbox's policy
// allows goes to the Resolver; for any other name nothing leaves the node, and
// the sandbox gets an address to which no route leads, or is told that the
// name does not exist. The Resolver asks the node's own name servers, believes
// only what answers its question, and takes out what a sandbox must not
// learn: addresses that are never reachable, and keys that would hide the name
// in a TLS handshake.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/policy"
)

var (
	errClosed = errors.New("the resolver is closed")
	errBusy   = errors.New("too many lookups are under way")
)

const (
	// lookupTimeout bounds the answer to one question, over all servers and
	// tries. It is a little less than what common clients wait.
	lookupTimeout = 4500 * time.Millisecond
	// maxFlights bounds the questions that are asked at the same time: enough
	// for dozens of sandboxes that keep name servers waiting.
	maxFlights = 8192
	// DefaultCacheBytes is how much memory the cache takes unless the
	// configuration says otherwise.
	DefaultCacheBytes = 16 << 20
)

// ResolverConfig configures a Resolver.
type ResolverConfig struct {
	// Upstreams are the name servers to ask. If there are none, those of
	// ResolvConf are asked.
	Upstreams []netip.AddrPort
	// ResolvConf is the file that lists the node's name servers; it is read
	// again when it changes. Empty means /etc/resolv.conf.
	ResolvConf string
	// Never is the table of addresses that are taken out of answers. Required.
	Never *policy.Never
	// CacheBytes bounds the cache; 0 means DefaultCacheBytes.
	CacheBytes int
	// Dial connects to name servers; nil means the net package does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Log receives trouble with name servers; nil discards it.
	Log *slog.Logger
}

// Resolver asks name servers and caches what they answer, for as long as it is
// valid and no longer. It is safe for concurrent use.
type Resolver struct {
	upstream *upstream
	filter   filter

	life    context.Context // ends with Close
	end     context.CancelFunc
	running sync.WaitGroup // flights
	landed  chan struct{}  // closed

	mu      sync.Mutex
	closed  bool
	cache   *cache
	flights map[question]*flight
}

// question is what name servers are asked; the class is always IN.
type question struct {
	name  policy.Name
	qtype uint16
}

// flight is a question that is being asked. Whoever has the same question
// meanwhile waits for the same answer.
type flight struct {
	question question
	done     chan struct{} // closed when answer and err are set
	// Exactly one of the two is nil.
	answer *Answer
	err    error
}

// landed reports whether there is nothing to wait for.
func (f *flight) landed() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// wait returns what came of the flight, unless ctx ends first.
func (f *flight) wait(ctx context.Context) (*Answer, error) {
	var err error
	select {
	case <-f.done:
		err = f.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %v %v: %w", f.question.name, wire.Type(f.question.qtype), err)
	}
	return f.answer, nil
}

// NewResolver returns a resolver that must be closed.
func NewResolver(cfg ResolverConfig) (*Resolver, error) {
	if cfg.Never == nil {
		return nil, errors.New("resolver: never: missing")
	}
	if cfg.CacheBytes < 0 {
		return nil, fmt.Errorf("resolver: cache of %d bytes", cfg.CacheBytes)
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = DefaultCacheBytes
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	servers, err := upstreamServers(cfg)
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	r := &Resolver{
		upstream: &upstream{servers: servers, dial: cfg.Dial, log: cfg.Log},
		filter:   filter{never: cfg.Never},
		landed:   make(chan struct{}),
		cache:    newCache(cfg.CacheBytes),
		flights:  make(map[question]*flight),
	}
	close(r.landed)
	r.life, r.end = context.WithCancel(context.Background())
	return r, nil
}

// upstreamServers returns who lists the servers to ask.
func upstreamServers(cfg ResolverConfig) (func() []netip.AddrPort, error) {
	for _, server := range cfg.Upstreams {
		if !server.IsValid() || server.Port() == 0 {
			return nil, fmt.Errorf("upstream %v: not an address and port", server)
		}
	}
	if len(cfg.Upstreams) > 0 {
		fixed := append([]netip.AddrPort(nil), cfg.Upstreams...)
		return func() []netip.AddrPort { return fixed }, nil
	}
	conf, err := newResolvConf(cfg.ResolvConf, cfg.Log)
	if err != nil {
		return nil, err
	}
	return conf.servers, nil
}

// Close abandons what is being asked and waits for the end of it.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.end()
	r.running.Wait()
	return nil
}

// Resolve returns the records of one type that a name has. That there are none
// is an Answer, not an error. The caller has made sure that the name may be
// asked for.
func (r *Resolver) Resolve(ctx context.Context, name policy.Name, qtype uint16) (*Answer, error) {
	return r.start(question{name, qtype}).wait(ctx)
}

// start returns the flight for a question: one that has landed if the answer
// is known, the one that is under way, or a new one.
func (r *Resolver) start(q question) *flight {
	if local := answerLocally(q, r.filter.never); local != nil {
		return &flight{question: q, done: r.landed, answer: local}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if answer := r.cache.get(q, time.Now()); answer != nil {
		return &flight{question: q, done: r.landed, answer: answer}
	}
	if f := r.flights[q]; f != nil {
		return f
	}
	switch {
	case r.closed:
		return &flight{question: q, done: r.landed, err: errClosed}
	case len(r.flights) >= maxFlights:
		return &flight{question: q, done: r.landed, err: errBusy}
	}
	f := &flight{question: q, done: make(chan struct{})}
	r.flights[q] = f
	// Not under the context of who asks first: others may wait as well.
	r.running.Go(func() { r.fly(f) })
	return f
}

// fly asks and tells everybody who waits.
func (r *Resolver) fly(f *flight) {
	defer close(f.done)
	ctx, cancel := context.WithTimeout(r.life, lookupTimeout)
	defer cancel()
	f.answer, f.err = r.fetch(ctx, f.question)

	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flights, f.question)
	if f.err == nil {
		r.cache.put(f.question, f.answer, time.Now())
	}
}

func (r *Resolver) fetch(ctx context.Context, q question) (*Answer, error) {
	reply, err := r.upstream.ask(ctx, q)
	if err != nil {
		return nil, err
	}
	return r.filter.accept(q, reply, time.Now())
}
