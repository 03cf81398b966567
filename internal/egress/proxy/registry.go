package proxy

import (
	"errors"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// registry finds what is known about the connections of each sandbox. A box is
// there as long as somebody uses it.
type registry struct {
	mu    sync.Mutex
	boxes map[string]*box // by sandbox; guarded by mu
}

// box holds the connections of one sandbox. They share nothing with those of
// others, not even a lock.
type box struct {
	sandbox string
	users   int // guarded by registry.mu

	mu        sync.Mutex // guards what follows, and what flow says it guards
	flows     map[*flow]struct{}
	sites     map[policy.Name]*site
	undecided int
	streams   int // requests under way over HTTP/2
	closed    bool
	// Connections beyond the limits are recorded together, once in a while.
	refused  int
	recorded time.Time
}

// open returns the box of a sandbox, which the caller releases.
func (r *registry) open(sandbox string) *box {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.boxes[sandbox]
	if !ok {
		b = &box{sandbox: sandbox, flows: make(map[*flow]struct{}), sites: make(map[policy.Name]*site)}
		r.boxes[sandbox] = b
	}
	b.users++
	return b
}

// find is open for a sandbox that has connections; otherwise it returns nil.
func (r *registry) find(sandbox string) *box {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.boxes[sandbox]
	if b != nil {
		b.users++
	}
	return b
}

// all returns every box. The caller releases them.
func (r *registry) all() (boxes []*box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.boxes {
		b.users++
		boxes = append(boxes, b)
	}
	return boxes
}

// retain is open for a box that is in use.
func (r *registry) retain(b *box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b.users++
}

func (r *registry) release(b *box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b.users--
	if b.users == 0 {
		delete(r.boxes, b.sandbox)
	}
}

var (
	errConnections = errors.New("the sandbox has too many connections open")
	errUndecided   = errors.New("the sandbox has too many connections open that have not said where they go")
	errStreams     = errors.New("the sandbox has too many requests under way")
	errSites       = errors.New("the sandbox is connected to too many servers")
	errEnded       = errors.New("the sandbox has ended")
)

// enter counts a flow in.
func (b *box) enter(f *flow, limits Limits) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return errEnded
	case len(b.flows) >= limits.Connections:
		return errConnections
	case b.undecided >= limits.Undecided:
		return errUndecided
	}
	b.flows[f] = struct{}{}
	b.undecided++
	return nil
}

// leave counts a flow out.
func (b *box) leave(f *flow) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.flows, f)
	if !f.decided {
		b.undecided--
	}
}

// reevaluate ends the flows that the next policy denies.
func (b *box) reevaluate(next egress.Tenant) (cut int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for f := range b.flows {
		if f.reevaluate(next) {
			cut++
		}
	}
	for _, s := range b.sites {
		if !s.stays(next.Policy) {
			b.drop(s)
		}
	}
	return cut
}

// drop closes a site's connections as they become idle, and has the next flow
// make others. The caller holds mu.
func (b *box) drop(s *site) {
	if b.sites[s.name] == s {
		delete(b.sites, s.name)
		s.close()
	}
}

// close ends all flows, and lets no new ones in.
func (b *box) close(why string) (cut int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for f := range b.flows {
		if f.cut(verdict{rule: ruleEnded, reason: why}) {
			cut++
		}
	}
	for _, s := range b.sites {
		b.drop(s)
	}
	return cut
}

// refusalInterval is how often refusals by a limit are recorded. A sandbox
// that runs into its limits must not fill its log with that.
const refusalInterval = time.Second

// refuse counts a connection beyond the limits, and returns how many there
// were since that was last recorded; 0 if it is not time to do so yet.
func (b *box) refuse(now time.Time) (refused int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused++
	if now.Sub(b.recorded) < refusalInterval {
		return 0
	}
	refused, b.refused, b.recorded = b.refused, 0, now
	return refused
}
