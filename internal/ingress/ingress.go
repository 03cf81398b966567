// Package ingress serves everything that arrives from outside on one pair of
// listeners: the public URLs of sandboxes, requests that name a sandbox by
// header on a shared host, and the API for every other host.
//
// A request for a sandbox passes, in this order: the strict parser of its
// address, the list of reserved paths, the lookup in memory, the traffic
// token, the sandbox's limit of requests in flight. Only then is anything
// inside the sandbox contacted.
//
// Connections into a sandbox belong to one life of that sandbox and to no
// other: when it ends, every stream through it is cut, so that a client never
// takes a truncated answer for a complete one, and no connection survives to
// meet the next tenant of the same address.
package ingress

import (
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"

	"github.com/moat-sandbox/moat/internal/secret"
)

// DefaultMaxInFlight is how many requests and upgraded connections one sandbox
// may have open at a time when Config says nothing.
const DefaultMaxInFlight = 10_000

// Lookup finds running sandboxes. It is asked once per request, also for ids
// that nobody ever had, so it must answer from memory.
type Lookup interface {
	Sandbox(id string) (Target, bool)
}

// Target is one life of one sandbox, as far as its public URLs go.
type Target struct {
	ID string
	// Addr is where the sandbox is reached. Nothing else is ever dialled.
	Addr netip.Addr
	// Done is closed when this life of the sandbox ends, and before anything
	// of it is torn down: a connection that the dying sandbox closes in good
	// order cannot be told from a complete answer. It identifies this life,
	// so no two lives share one.
	Done <-chan struct{}
	// Public lets everybody reach the sandbox's ports. Otherwise a request
	// needs Token, and without one nobody gets in.
	Public bool
	Token  secret.String
	// GuestToken is what the guest daemon itself asks for, empty when it asks
	// for nothing. On the guest's port it does what Token does elsewhere, and
	// it is never passed on to other programs.
	GuestToken secret.String
	// MaskHost, when not empty, replaces the Host header that programs in the
	// sandbox see; "${PORT}" in it stands for the port. The guest daemon's
	// port is not masked.
	MaskHost string
}

// Config is what an Ingress is made of.
type Config struct {
	// Domain is the name below which sandboxes have their hosts, such as
	// "sandboxes.example.com" or "localhost". It has no port.
	Domain string
	// Sandboxes finds running sandboxes.
	Sandboxes Lookup
	// API answers every request that is not for a sandbox.
	API http.Handler
	// IsKey reports whether a value is one of the server's API keys. Such a
	// value is taken out of requests before a sandbox sees them. Nil when
	// there are none to protect.
	IsKey func(value string) bool
	// MaxInFlight bounds the requests and upgraded connections that one
	// sandbox has open at a time; 0 means DefaultMaxInFlight.
	MaxInFlight int
	Logger      *slog.Logger
}

// Ingress is an http.Handler for everything that arrives from outside.
type Ingress struct {
	domain      string
	sandboxes   Lookup
	api         http.Handler
	isKey       func(string) bool
	maxInFlight int
	log         *slog.Logger
	proxyLog    *log.Logger // what net/http/httputil has to say
	buffers     bufferPool

	closing  chan struct{}
	watchers sync.WaitGroup // one per upstream

	mu        sync.Mutex
	closed    bool                          // guarded by mu
	upstreams map[<-chan struct{}]*upstream // by Target.Done; guarded by mu
}

// New checks the configuration and returns an Ingress that serves at once.
func New(cfg Config) (*Ingress, error) {
	domain, err := checkDomain(cfg.Domain)
	if err != nil {
		return nil, err
	}
	switch {
	case cfg.Sandboxes == nil:
		return nil, errors.New("ingress: no lookup for sandboxes given")
	case cfg.API == nil:
		return nil, errors.New("ingress: no API handler given")
	case cfg.Logger == nil:
		return nil, errors.New("ingress: no logger given")
	case cfg.MaxInFlight < 0:
		return nil, fmt.Errorf("ingress: limit of requests in flight %d is negative", cfg.MaxInFlight)
	}
	isKey := cfg.IsKey
	if isKey == nil {
		isKey = func(string) bool { return false }
	}
	limit := cfg.MaxInFlight
	if limit == 0 {
		limit = DefaultMaxInFlight
	}
	return &Ingress{
		domain:      domain,
		sandboxes:   cfg.Sandboxes,
		api:         cfg.API,
		isKey:       isKey,
		maxInFlight: limit,
		log:         cfg.Logger,
		proxyLog:    slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
		closing:     make(chan struct{}),
		upstreams:   make(map[<-chan struct{}]*upstream),
	}, nil
}

// ServeHTTP implements http.Handler.
func (in *Ingress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	addr, ok, fail := in.locate(r)
	if !ok && fail == nil {
		in.api.ServeHTTP(w, r)
		return
	}
	if fail == nil {
		fail = in.serveSandbox(w, r, addr)
	}
	if fail != nil {
		fail.write(w, r)
	}
}

// serveSandbox answers a request for a port of a sandbox, or says why it does
// not. Nothing has been written to w when it returns a failure.
func (in *Ingress) serveSandbox(w http.ResponseWriter, r *http.Request, addr address) *failure {
	if fail := checkRequest(r, addr); fail != nil {
		return fail
	}
	target, ok := in.sandboxes.Sandbox(addr.id)
	if !ok || !target.complete(addr) {
		return notFound(addr)
	}
	if fail := target.admit(addr, r.Header); fail != nil {
		return fail
	}
	up, err := in.upstream(target)
	if err != nil {
		return in.explain(err, addr)
	}
	return in.forward(w, r, up, target, addr)
}

// complete guards against a lookup that answers with too little to be sure
// where the request would end up.
func (t Target) complete(addr address) bool {
	return t.ID == addr.id && t.Addr.IsValid() && t.Done != nil
}

// Close cuts whatever is still open and waits for the goroutines behind it.
// Stop the servers first. Later requests for sandboxes are refused.
func (in *Ingress) Close() error {
	in.mu.Lock()
	if !in.closed {
		in.closed = true
		close(in.closing)
	}
	in.mu.Unlock()
	in.watchers.Wait()
	return nil
}
