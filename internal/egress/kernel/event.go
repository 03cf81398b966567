package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Event is a flow of a sandbox that the kernel decided about by itself. What was
// redirected to the doors is not among them.
type Event struct {
	// Slot is the number of the sandbox's slot, Src its address.
	Slot  int
	Src   netip.Addr
	Proto policy.Proto
	// Dst has port 0 where the protocol has none.
	Dst netip.AddrPort
	// Began is when the flow began, or was refused.
	Began   time.Time
	Outcome Outcome
	// BytesUp and BytesDown count whole packets, headers included. They and the
	// duration, to the last packet, are 0 for what was refused.
	BytesUp, BytesDown uint64
	Duration           time.Duration
}

// Outcome is what became of a flow.
type Outcome uint8

const (
	// Refused: by the policy, or because the destination is never reachable.
	Refused Outcome = iota
	// RefusedNode: it was to the node itself.
	RefusedNode
	// RefusedSandbox: it was to another sandbox.
	RefusedSandbox
	// RefusedLimit: the sandbox has too many flows.
	RefusedLimit
	// Ended: it was allowed, and is over.
	Ended
	// Cut: it was allowed, and the policy changed or the slot was closed.
	Cut
)

// Allowed reports whether the flow was allowed to begin.
func (o Outcome) Allowed() bool { return o == Ended || o == Cut }

// Watch tells of flows as they are refused, and as those that were allowed end,
// until ctx does. It tells one after the other. The kernel does not wait: what
// is told too slowly is lost, and of a sandbox that is refused all the time only
// some refusals are told.
func (n *Network) Watch(ctx context.Context, tell func(Event)) error {
	return n.watch(ctx, tell, func() {})
}

// watch calls ready when it hears everything.
func (n *Network) watch(ctx context.Context, tell func(Event), ready func()) (err error) {
	refusals, err := openListener(&n.lost)
	if err != nil {
		return fmt.Errorf("watch flows: %w", err)
	}
	defer func() { err = errors.Join(err, refusals.close()) }()
	if err := refusals.bindLog(logGroup); err != nil {
		return fmt.Errorf("watch flows: %w", err)
	}
	endings, err := openListener(&n.lost)
	if err != nil {
		return fmt.Errorf("watch flows: %w", err)
	}
	defer func() { err = errors.Join(err, endings.close()) }()
	if err := endings.join(groupDestroy); err != nil {
		return fmt.Errorf("watch flows: %w", err)
	}
	patience, err := readTimeouts()
	if err != nil {
		return fmt.Errorf("watch flows: %w", err)
	}
	expired, err := openTracker()
	if err != nil {
		return fmt.Errorf("watch flows: %w", err)
	}
	defer func() { err = errors.Join(err, expired.close()) }()
	tick := time.NewTicker(forgetPause)
	defer tick.Stop()
	ready()
	var one sync.Mutex
	tellOne := func(e Event, known bool) {
		if known {
			one.Lock()
			defer one.Unlock()
			tell(e)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		forgetExpired(ctx, tick.C, expired.forget, n.log)
		return nil
	})
	group.Go(func() error {
		return refusals.run(ctx, func(m message) { tellOne(n.refusal(m, time.Now())) })
	})
	group.Go(func() error {
		return endings.run(ctx, func(m message) { tellOne(n.ending(m, patience)) })
	})
	if err := group.Wait(); err != nil {
		return fmt.Errorf("watch flows: %w", err)
	}
	return nil
}

// Lost returns how many times events were lost since Open because they were not
// told fast enough; each time it was at least one.
func (n *Network) Lost() uint64 { return n.lost.Load() }
