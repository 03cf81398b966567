package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// removalRetry is how long after a failed removal the next one is tried.
const removalRetry = 10 * time.Second

// Kill removes a sandbox. It returns when nothing of it is left on the machine.
func (n *Node) Kill(ctx context.Context, id string) error {
	return n.remove(ctx, id, "killed", func(*live) bool { return true })
}

func (n *Node) expire(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	if err := n.remove(ctx, id, "timeout", (*live).due); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		n.Logger.Error("remove expired sandbox", "sandbox", id, "error", err)
	}
}

// watch removes a sandbox whose box ended by itself. It ends with the node,
// which leaves its sandboxes to the next server.
func (n *Node) watch(id string, l *live) {
	ctx, cancel := context.WithCancel(n.background)
	defer cancel()
	go func() {
		select {
		case <-l.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	exit, err := l.box.Wait(ctx)
	if ctx.Err() != nil {
		return // removed by us, or not ours to watch any more
	}
	cause := "box ended"
	if exit.OOM {
		cause = "out of memory"
	}
	if err != nil {
		n.Logger.Error("watch box", "sandbox", id, "error", err)
	}
	cleanup, stop := context.WithTimeout(context.Background(), cleanupTimeout)
	defer stop()
	if err := n.remove(cleanup, id, cause, func(*live) bool { return true }); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		n.Logger.Error("remove ended sandbox", "sandbox", id, "error", err)
	}
}

// remove takes a sandbox apart: first no request finds it any more, then its
// box and slot go, and the record last, so that a server that dies in between
// finds it again and finishes. Whether it still should go is asked under the
// lock that also guards an extension of its time.
func (n *Node) remove(ctx context.Context, id, cause string, still func(*live) bool) error {
	l, err := n.find(id)
	if err != nil {
		return err
	}
	l.change.Lock()
	defer l.change.Unlock()
	if l.gone {
		return sandbox.ErrNotFound
	}
	if !still(l) {
		l.rearmExpiry() // its time was extended, or the clock was set
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	record, err := n.Store.UpdateSandbox(ctx, id, func(s *store.Sandbox) error {
		s.State = sandbox.Stopping
		return nil
	})
	// A full disk must not keep a sandbox alive.
	if err != nil && !errors.Is(err, store.ErrFull) {
		l.retryRemoval()
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	l.retire()
	n.evict(l.slot, id)
	if err := n.discardOnce(ctx, l); err != nil {
		l.retryRemoval()
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	n.Audit.Retire(id, l.snapshot().Team) // before nobody knows whose it was
	if err := n.Store.DeleteSandbox(ctx, id); err != nil && !errors.Is(err, store.ErrNotFound) {
		l.retryRemoval()
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	l.gone = true
	n.forget(id, l.snapshot().Team)
	n.Logger.Info("sandbox removed", "sandbox", id, "cause", cause, "lived", time.Since(record.StartedAt).Round(time.Millisecond))
	return nil
}

// discardOnce gives back the box and the slot of a sandbox. A removal that
// failed later comes here again, when they may have another tenant. The caller
// holds l.change.
func (n *Node) discardOnce(ctx context.Context, l *live) error {
	if l.discarded {
		return nil
	}
	if err := n.discard(ctx, warm{box: l.box, slot: l.slot}); err != nil {
		return err
	}
	l.discarded = true
	return nil
}

// due reports whether the sandbox's time is over or its removal has begun.
func (l *live) due() bool {
	return l.retired() || !l.snapshot().EndAt.After(time.Now())
}

// retire makes the sandbox unreachable for ingress and stops its timer. Doing
// it again changes nothing.
func (l *live) retire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expiry.Stop()
	l.grants.Stop()
	select {
	case <-l.done:
	default:
		close(l.done)
	}
}

// rearmExpiry sets the timer for the end that is recorded.
func (l *live) rearmExpiry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expiry.Reset(time.Until(l.record.EndAt))
}

// retryRemoval lets the timer try again what could not be torn down now.
func (l *live) retryRemoval() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expiry.Reset(removalRetry)
}

func (l *live) snapshot() store.Sandbox {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record
}

func (n *Node) forget(id, team string) {
	n.mu.Lock()
	delete(n.live, id)
	n.mu.Unlock()
	n.release(team)
}
