// Package node runs the sandboxes of one machine. It brings slots, policy,
// runtime and guest together so that the machine always is what the store says:
// a sandbox exists for callers only once every part of it is in place, and a
// failed step takes back the ones before it.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// Network is what node needs of the network slots.
type Network interface {
	Create(ctx context.Context) (kernel.Slot, error)
	Apply(ctx context.Context, slot kernel.Slot, p *policy.Policy) (kernel.Receipt, error)
	Destroy(ctx context.Context, slot kernel.Slot) error
	Load(index int) (kernel.Slot, error)
	Adopt(ctx context.Context, tenants []kernel.Tenant) error
	Sweep(ctx context.Context, keep []kernel.Slot) error
}

// Templates finds what a sandbox is started from.
type Templates interface {
	Resolve(ctx context.Context, ref string) (store.Template, error)
}

// Audit is told when a sandbox has ended, so that its team can still read what
// it did.
type Audit interface {
	Retire(sandbox, team string)
}

// Config is what a Node is made of. Every field is required but Pool and Ahead.
type Config struct {
	Store     store.Store
	Network   Network
	Tenants   Tenants
	Flows     egress.Flows
	Audit     Audit
	Runtime   sandbox.Runtime
	Templates Templates
	// Guest was set up with GuestSetup.
	Guest  sandbox.Guest
	Master secret.Master
	Logger *slog.Logger

	// Compile turns a document into a policy, with the operator's settings.
	Compile func(policy.Document) (*policy.Policy, error)
	// Warm is what pooled boxes are booted with; a template with other memory or
	// disk limits is started cold.
	Warm sandbox.Limits
	// Pool is how many booted boxes wait for a sandbox, and how many more wait
	// with the template Ahead already started. 0 boots each on demand.
	Pool int
	// Ahead is the id of the template worth starting before it is asked for.
	Ahead string
	// MaxSandboxes and TeamLimit bound how many sandboxes live at once, on the
	// machine and for one team.
	MaxSandboxes int
	TeamLimit    int
}

// Node runs sandboxes.
type Node struct {
	Config
	guest *guestClient
	// empty and started are the boxes that wait for a create.
	empty, started *pool
	quiet          lull

	mu   sync.Mutex
	live map[string]*live
	// teams counts admitted sandboxes, also those still being created.
	teams    map[string]int
	admitted int

	// background ends when the node is closed, and everything in bg with it.
	background context.Context
	stop       context.CancelFunc
	bg         sync.WaitGroup
}

// live is one sandbox that exists on this machine.
type live struct {
	box  sandbox.Box
	slot kernel.Slot
	// done closes when the sandbox stops being reachable.
	done chan struct{}

	// change serialises what alters the sandbox: network updates and removal.
	change sync.Mutex
	// Guarded by change: the box and the slot are given back, and others may
	// have them; nothing is left at all.
	discarded, gone bool

	// mu guards record, keys, both timers and samples.
	mu      sync.Mutex
	record  store.Sandbox
	keys    Keys        // of record: every request from outside asks for them
	expiry  *time.Timer // goes off at record.EndAt
	grants  *time.Timer // goes off when the first of record.Grants is over
	samples []sandbox.Sample
}

// Open adopts the sandboxes an earlier server left running, removes whatever
// belongs to none, and starts filling the pool.
func Open(ctx context.Context, c Config) (*Node, error) {
	switch {
	case c.Store == nil, c.Network == nil, c.Tenants == nil, c.Flows == nil, c.Audit == nil, c.Runtime == nil, c.Templates == nil, c.Logger == nil, c.Compile == nil:
		return nil, errors.New("node: incomplete configuration")
	case c.Master.Empty():
		return nil, errors.New("node: no master key to derive tokens from")
	case c.MaxSandboxes <= 0, c.TeamLimit <= 0:
		return nil, errors.New("node: sandbox limits must be positive")
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	n := &Node{
		Config:     c,
		guest:      newGuestClient(),
		live:       make(map[string]*live),
		teams:      make(map[string]int),
		background: background,
		stop:       stop,
	}
	if err := n.adopt(ctx); err != nil {
		stop()
		n.bg.Wait()
		return nil, fmt.Errorf("adopt running sandboxes: %w", err)
	}
	n.empty, n.started = n.newPool(n.bootEmpty), n.newPool(n.bootStarted)
	n.bg.Go(func() { n.started.fill(background) })
	n.bg.Go(func() { n.empty.fill(background) })
	n.bg.Go(func() { n.sample(background) })
	return n, nil
}

// Close stops background work and gives back the warm pool. Sandboxes keep
// running, confined as they are, for the next server to adopt.
func (n *Node) Close() {
	n.mu.Lock()
	n.stop() // no timer does anything any more
	n.mu.Unlock()
	n.bg.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.live {
		l.mu.Lock()
		l.expiry.Stop()
		l.grants.Stop()
		l.mu.Unlock()
	}
	n.guest.close()
}

// onTimer does what a timer is for, unless the node is closed. Close waits for
// it.
func (n *Node) onTimer(do func()) {
	n.mu.Lock()
	if n.background.Err() != nil {
		n.mu.Unlock()
		return
	}
	n.bg.Add(1)
	n.mu.Unlock()
	defer n.bg.Done()
	do()
}

// KillAll removes every sandbox, for an operator who does not want them to
// outlive the server.
func (n *Node) KillAll(ctx context.Context) error {
	var errs []error
	for _, id := range n.ids() {
		if err := n.Kill(ctx, id); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Count is the number of live sandboxes.
func (n *Node) Count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.live)
}

func (n *Node) ids() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := make([]string, 0, len(n.live))
	for id := range n.live {
		ids = append(ids, id)
	}
	return ids
}

func (n *Node) find(id string) (*live, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l, ok := n.live[id]; ok {
		return l, nil
	}
	return nil, sandbox.ErrNotFound
}

// admit counts a sandbox of the team before anything is made for it; release
// takes that back.
func (n *Node) admit(team string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.teams[team] >= n.TeamLimit {
		return sandbox.ErrTeamLimit
	}
	if n.admitted >= n.MaxSandboxes {
		return sandbox.ErrNoCapacity
	}
	n.teams[team]++
	n.admitted++
	return nil
}

func (n *Node) release(team string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.admitted--
	if n.teams[team]--; n.teams[team] == 0 {
		delete(n.teams, team)
	}
}
