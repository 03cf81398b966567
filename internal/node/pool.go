package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// warm is a booted box in a closed slot. Nobody owns it yet.
type warm struct {
	box  sandbox.Box
	slot kernel.Slot
	// template has been started in the box; empty if none has.
	template string
	// waited is true for a box from the pool, which may have ended since.
	waited bool
}

// pool keeps warm boxes ready, so that a create does not wait for a boot.
type pool struct {
	ready   chan warm
	wanted  chan struct{} // one token for each box that is missing
	boot    func(context.Context) (warm, error)
	discard func(context.Context, warm) error
	quiet   *lull
	log     *slog.Logger
}

func (n *Node) newPool(boot func(context.Context) (warm, error)) *pool {
	size := n.Pool
	p := &pool{
		ready:   make(chan warm, size),
		wanted:  make(chan struct{}, size),
		boot:    boot,
		discard: n.discard,
		quiet:   &n.quiet,
		log:     n.Logger,
	}
	for range size {
		p.wanted <- struct{}{}
	}
	return p
}

// take returns a warm box if one is ready.
func (p *pool) take() (warm, bool) {
	select {
	case w := <-p.ready:
		p.wanted <- struct{}{}
		w.waited = true
		return w, true
	default:
		return warm{}, false
	}
}

// fill boots boxes until ctx ends, then gives back those nobody took.
func (p *pool) fill(ctx context.Context) {
	defer p.drain(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wanted:
		}
		p.quiet.await(ctx)
		w, err := p.boot(ctx)
		if err == nil {
			p.ready <- w
			continue
		}
		p.wanted <- struct{}{}
		if ctx.Err() != nil {
			return
		}
		p.log.Error("warm pool: boot failed, next try in a second", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (p *pool) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	for {
		select {
		case w := <-p.ready:
			if err := p.discard(ctx, w); err != nil {
				p.log.Error("warm pool: give back box", "box", w.box.ID(), "error", err)
			}
		default:
			return
		}
	}
}

// take finds a box for a template: one in which it already runs, else an empty
// warm one whose memory fits, else a fresh one.
func (n *Node) take(ctx context.Context, t store.Template) (warm, error) {
	if t.ID == n.Ahead {
		if w, ok := n.started.take(); ok {
			return w, nil
		}
	}
	if t.Limits.SameMemory(n.Warm) {
		if w, ok := n.empty.take(); ok {
			return w, nil
		}
	}
	return n.boot(ctx, t.Limits)
}

func (n *Node) bootEmpty(ctx context.Context) (warm, error) { return n.boot(ctx, n.Warm) }

// bootStarted boots a box and starts the template in it that most creates want.
// Its guest waits, in a closed slot, to be told who it is.
func (n *Node) bootStarted(ctx context.Context) (warm, error) {
	t, err := n.Templates.Resolve(ctx, n.Ahead)
	if err != nil {
		return warm{}, err
	}
	w, err := n.boot(ctx, t.Limits)
	if err != nil {
		return warm{}, err
	}
	if err := n.start(ctx, &w, t); err != nil {
		return warm{}, errors.Join(err, n.discard(context.WithoutCancel(ctx), w))
	}
	return w, nil
}

// start runs a template in an empty box.
func (n *Node) start(ctx context.Context, w *warm, t store.Template) error {
	err := w.box.Start(ctx, sandbox.StartSpec{Hostname: hostname, Root: t.Root, Guest: n.Guest, Limits: t.Limits})
	if err != nil {
		return fmt.Errorf("start template %s: %w", t.ID, err)
	}
	w.template = t.ID
	return nil
}

// hostname is the same in every sandbox: a template may be started before the
// sandbox has an id.
const hostname = "moat"

func (n *Node) boot(ctx context.Context, limits sandbox.Limits) (warm, error) {
	slot, err := n.Network.Create(ctx)
	if err != nil {
		return warm{}, fmt.Errorf("create network slot: %w", err)
	}
	box, err := n.Runtime.Prepare(ctx, sandbox.NewBoxID(), slot.NetNS, limits)
	if err != nil {
		err = fmt.Errorf("boot box: %w", err)
		return warm{}, errors.Join(err, n.Network.Destroy(context.WithoutCancel(ctx), slot))
	}
	return warm{box: box, slot: slot}, nil
}

// discard gives back a box and its slot. The slot goes last: it stays closed
// around the box until nothing of it runs.
func (n *Node) discard(ctx context.Context, w warm) error {
	if err := w.box.Destroy(ctx); err != nil {
		return fmt.Errorf("destroy box %s: %w", w.box.ID(), err)
	}
	if err := n.Network.Destroy(ctx, w.slot); err != nil {
		return fmt.Errorf("destroy network slot %d: %w", w.slot.Index, err)
	}
	return nil
}
