package storetest

import (
	"context"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// Records changes the records of sandboxes as the node does, where there is
// nothing that would have to follow them. Stand-ins for the node embed it.
type Records struct {
	store.Store
	// Before is asked before every change; an error of it is the answer.
	Before func() error
	// Cut is how many flows every change of a network says that it has cut.
	Cut int
}

// SetEnd moves the end of a sandbox's life.
func (r *Records) SetEnd(ctx context.Context, id string, at time.Time, extendOnly bool) (store.Sandbox, error) {
	if err := r.Before(); err != nil {
		return store.Sandbox{}, err
	}
	return r.UpdateSandbox(ctx, id, func(s *store.Sandbox) error {
		if !extendOnly || at.After(s.EndAt) {
			s.EndAt = at.UTC()
		}
		return nil
	})
}

// SetNetwork replaces the network document.
func (r *Records) SetNetwork(ctx context.Context, id string, change sandbox.NetworkChange) (sandbox.Receipt, error) {
	return r.renew(ctx, id, func(s *store.Sandbox) error {
		if change.IfGeneration != 0 && change.IfGeneration != s.Generation {
			return sandbox.ErrGeneration
		}
		s.Network, s.InternetAccess = change.Document, change.Internet
		if !change.KeepGrants {
			s.Grants = nil
		}
		return nil
	})
}

// EditNetwork replaces the lists of the network document.
func (r *Records) EditNetwork(ctx context.Context, id string, edit func(store.Sandbox) ([]string, []string, error)) (store.Sandbox, sandbox.Receipt, error) {
	receipt, err := r.renew(ctx, id, func(s *store.Sandbox) (err error) {
		s.Network.AllowOut, s.Network.DenyOut, err = edit(*s)
		return err
	})
	if err != nil {
		return store.Sandbox{}, receipt, err
	}
	record, err := r.Store.Sandbox(ctx, id)
	return record, receipt, err
}

// Grant adds a grant; nobody ends it.
func (r *Records) Grant(ctx context.Context, id string, entries []string, until time.Time) (sandbox.Grant, sandbox.Receipt, error) {
	grant := sandbox.Grant{ID: sandbox.NewGrantID(), AllowOut: entries, CreatedAt: time.Now().UTC(), ExpiresAt: until.UTC()}
	receipt, err := r.renew(ctx, id, func(s *store.Sandbox) error { return s.AddGrant(grant) })
	return grant, receipt, err
}

// Revoke ends a grant.
func (r *Records) Revoke(ctx context.Context, id, grant string) (sandbox.Receipt, error) {
	return r.renew(ctx, id, func(s *store.Sandbox) error { return s.EndGrant(grant, time.Now()) })
}

func (r *Records) renew(ctx context.Context, id string, edit func(*store.Sandbox) error) (sandbox.Receipt, error) {
	if err := r.Before(); err != nil {
		return sandbox.Receipt{}, err
	}
	record, err := r.UpdateSandbox(ctx, id, func(s *store.Sandbox) error {
		err := edit(s)
		s.Generation++
		return err
	})
	return sandbox.Receipt{Generation: record.Generation, Cut: r.Cut}, err
}
