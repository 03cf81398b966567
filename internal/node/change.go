package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// SetEnd moves the end of a sandbox's life. With extendOnly an earlier end than
// the present one changes nothing.
func (n *Node) SetEnd(ctx context.Context, id string, at time.Time, extendOnly bool) (store.Sandbox, error) {
	record, err := n.amend(ctx, id, func(s *store.Sandbox) error {
		if !extendOnly || at.After(s.EndAt) {
			s.EndAt = at.UTC()
		}
		return nil
	})
	if err != nil {
		return store.Sandbox{}, fmt.Errorf("set end of sandbox %s: %w", id, err)
	}
	return record, nil
}

// RotateTrafficToken gives a sandbox another traffic token. When it returns nil
// the old one lets no request in any more; on error it still does. Where no port
// is private there is none: sandbox.ErrPublic.
func (n *Node) RotateTrafficToken(ctx context.Context, id string) (secret.String, error) {
	record, err := n.amend(ctx, id, func(s *store.Sandbox) error {
		if !s.Ingress.Private() {
			return sandbox.ErrPublic
		}
		s.TrafficNonce = sandbox.NewNonce()
		return nil
	})
	if err != nil {
		return secret.String{}, fmt.Errorf("rotate traffic token of sandbox %s: %w", id, err)
	}
	n.Logger.Info("traffic token rotated", "sandbox", id)
	return n.TrafficToken(record), nil
}

// amend changes what is recorded of a live sandbox, and what the node knows of
// it, in one step.
func (n *Node) amend(ctx context.Context, id string, edit func(*store.Sandbox) error) (store.Sandbox, error) {
	l, err := n.find(id)
	if err != nil {
		return store.Sandbox{}, err
	}
	l.change.Lock()
	defer l.change.Unlock()
	if l.retired() {
		return store.Sandbox{}, sandbox.ErrNotFound
	}
	record, err := n.Store.UpdateSandbox(ctx, id, edit)
	if err != nil {
		return store.Sandbox{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record, l.keys = record, n.keys(record)
	l.expiry.Reset(time.Until(record.EndAt))
	return record, nil
}

// SetNetwork replaces a sandbox's network document. When it returns nil the
// data plane has confirmed the new policy, flows it denies are cut and the
// record says the same. On error the old policy holds and is what is stored.
func (n *Node) SetNetwork(ctx context.Context, id string, change sandbox.NetworkChange) (sandbox.Receipt, error) {
	receipt, _, err := n.renew(ctx, id, func(s *store.Sandbox) error {
		if change.IfGeneration != 0 && change.IfGeneration != s.Generation {
			return sandbox.ErrGeneration
		}
		doc := change.Document
		if change.KeepRules {
			old, err := n.unseal(*s)
			if err != nil {
				return err
			}
			doc.Rules = old.Rules
		}
		open, sealed, err := n.seal(id, doc)
		if err != nil {
			return err
		}
		s.Network, s.NetworkSecrets, s.InternetAccess = open, sealed, change.Internet
		if !change.KeepGrants {
			s.Grants = nil
		}
		return nil
	})
	return receipt, err
}

// EditNetwork replaces the lists of a sandbox's network document by what edit
// makes of its record, and leaves the rest alone. It promises what SetNetwork
// does. edit may be called more than once; its error is returned unwrapped.
func (n *Node) EditNetwork(ctx context.Context, id string, edit func(store.Sandbox) (allowOut, denyOut []string, err error)) (store.Sandbox, sandbox.Receipt, error) {
	receipt, record, err := n.renew(ctx, id, func(s *store.Sandbox) (err error) {
		s.Network.AllowOut, s.Network.DenyOut, err = edit(*s)
		return err
	})
	return record, receipt, err
}

// renew changes what a sandbox may reach, as SetNetwork promises. edit is
// called twice, first on a copy of the record and then on the record itself,
// and must do the same both times; its error is returned unwrapped. It must not
// change what the slices and maps of the record refer to.
func (n *Node) renew(ctx context.Context, id string, edit func(*store.Sandbox) error) (sandbox.Receipt, store.Sandbox, error) {
	l, err := n.find(id)
	if err != nil {
		return sandbox.Receipt{}, store.Sandbox{}, err
	}
	l.change.Lock()
	defer l.change.Unlock()
	if l.retired() {
		return sandbox.Receipt{}, store.Sandbox{}, sandbox.ErrNotFound
	}
	next := l.snapshot()
	if err := edit(&next); err != nil {
		return sandbox.Receipt{}, store.Sandbox{}, err
	}
	compiled, err := n.policyOf(next)
	if err != nil {
		return sandbox.Receipt{}, store.Sandbox{}, err
	}
	// From here the caller's departure must not leave kernel and record apart.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	applied, err := n.Network.Apply(ctx, l.slot, compiled)
	if err != nil {
		return sandbox.Receipt{}, store.Sandbox{}, errors.Join(fmt.Errorf("apply network policy: %w", err), n.restore(ctx, l))
	}
	// What can fail comes first; what carries flows is told when nothing can.
	record, err := n.Store.UpdateSandbox(ctx, id, func(s *store.Sandbox) error {
		err := edit(s)
		s.Generation++
		return err
	})
	if err != nil {
		return sandbox.Receipt{}, store.Sandbox{}, errors.Join(fmt.Errorf("record network policy: %w", err), n.restore(ctx, l))
	}
	l.mu.Lock()
	l.record = record
	l.armGrants()
	l.mu.Unlock()
	cut := applied.Cut + n.resettle(l.slot, record, compiled)
	return sandbox.Receipt{Generation: record.Generation, Cut: cut}, record, nil
}

// restore puts the stored policy back in force. Where that fails the slot is
// closed, and nobody speaks for it.
func (n *Node) restore(ctx context.Context, l *live) error {
	record := l.snapshot()
	previous, err := n.policyOf(record)
	if err == nil {
		_, err = n.Network.Apply(ctx, l.slot, previous)
	}
	if err == nil {
		n.resettle(l.slot, record, previous) // it may have lost a grant meanwhile
		return nil
	}
	n.resettle(l.slot, record, nil)
	_, closeErr := n.Network.Apply(ctx, l.slot, nil)
	return errors.Join(fmt.Errorf("restore network policy, sandbox is closed: %w", err), closeErr)
}

func (l *live) retired() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}
