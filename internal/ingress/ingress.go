// Package ingress serves everything that arrives from outside on one pair of
// listeners: the public URLs of sandboxes, requests that name a sandbox by
// header or path on a shared host, and the API for everything else.
//
// A request for a sandbox passes, in this order: the strict parser of its
// address, the list of reserved paths, the lookup in memory, the check of its
// token or link, the sandbox's limit of requests in flight. Only then is
// anything inside the sandbox contacted.
//
// Connections into a sandbox belong to one life of that sandbox and to no
// other: when it ends, every stream through it is cut, so that a client never
// takes a truncated answer for a complete one, and no connection survives to
// meet the next tenant of the same address.
package ingress

import (
	"log"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Ingress is an http.Handler for everything that arrives from outside.
type Ingress struct {
	domain          string
	sandboxes       Lookup
	api             http.Handler // nil: only sandboxes' own hosts are served
	isKey           func(string) bool
	maxInFlight     int
	maxHeader       int // bytes
	headerTimeout   time.Duration
	refusePreflight bool
	observer        Observer // may be nil
	log             *slog.Logger
	proxyLog        *log.Logger // what net/http/httputil has to say

	buffers   bufferPool
	total     tally
	clients   clients
	strangers *strangers
	changes   atomic.Uint64 // of access, counted by Recheck

	closing  chan struct{}
	watchers sync.WaitGroup // one per upstream

	mu        sync.Mutex
	closed    bool                          // guarded by mu
	upstreams map[<-chan struct{}]*upstream // by Target.Done; guarded by mu
}

// ServeHTTP implements http.Handler.
func (in *Ingress) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rt, fail := in.locate(r)
	if fail == nil && rt.by == toAPI {
		in.api.ServeHTTP(w, r)
		return
	}
	in.total.requests.Add(1)
	if fail != nil {
		in.refuse(w, r, fail)
		return
	}
	in.serveSandbox(w, r, rt)
}

// refuse answers in place of a sandbox, and counts the answer.
func (in *Ingress) refuse(w http.ResponseWriter, r *http.Request, f *failure, also ...*tally) {
	in.total.fail(f.Code)
	for _, t := range also {
		t.fail(f.Code)
	}
	f.write(w, r)
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
