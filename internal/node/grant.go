package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// grantRetry is how long after a failure it is tried again to end a grant.
const grantRetry = 5 * time.Second

// Grant allows entries of allowOut beside a sandbox's document until a time.
// What SetNetwork promises about the data plane and the record holds here too.
func (n *Node) Grant(ctx context.Context, id string, entries []string, until time.Time) (sandbox.Grant, sandbox.Receipt, error) {
	now := time.Now().UTC()
	grant := sandbox.Grant{ID: sandbox.NewGrantID(), AllowOut: entries, CreatedAt: now, ExpiresAt: until.UTC()}
	receipt, _, err := n.renew(ctx, id, func(s *store.Sandbox) error { return s.AddGrant(grant) })
	if err != nil {
		return sandbox.Grant{}, sandbox.Receipt{}, err
	}
	n.Logger.Info("network grant begins", "sandbox", id, "grant", grant.ID, "until", grant.ExpiresAt)
	return grant, receipt, nil
}

// Revoke ends a grant before its time; sandbox.ErrNoGrant where it is over. When
// it returns nil, what only the grant allowed is cut.
func (n *Node) Revoke(ctx context.Context, id, grant string) (sandbox.Receipt, error) {
	now := time.Now()
	receipt, _, err := n.renew(ctx, id, func(s *store.Sandbox) error { return s.EndGrant(grant, now) })
	if err != nil {
		return sandbox.Receipt{}, err
	}
	n.Logger.Info("network grant revoked", "sandbox", id, "grant", grant)
	return receipt, nil
}

// errNoneOver ends an edit that has nothing to do.
var errNoneOver = errors.New("no grant is over")

// endGrants takes back what only grants allowed whose time is over. It is what
// the timer does. Where it fails it is tried again; until then the slot is as
// restore leaves it, which knows the time as well.
func (n *Node) endGrants(id string) {
	ctx, cancel := context.WithTimeout(n.background, cleanupTimeout)
	defer cancel()
	now := time.Now()
	receipt, _, err := n.renew(ctx, id, func(s *store.Sandbox) error {
		active := sandbox.ActiveGrants(s.Grants, now)
		if len(active) == len(s.Grants) {
			return errNoneOver
		}
		s.Grants = active
		return nil
	})
	switch {
	case err == nil:
		n.Logger.Info("network grant is over", "sandbox", id, "cut", receipt.Cut)
	case errors.Is(err, sandbox.ErrNotFound):
	case errors.Is(err, errNoneOver): // ended by somebody else, or the clock was set
		n.rearmGrants(id, 0)
	default:
		n.Logger.Error("end network grant", "sandbox", id, "error", err)
		n.rearmGrants(id, grantRetry)
	}
}

// rearmGrants sets the timer again; 0 means when the next grant is over.
func (n *Node) rearmGrants(id string, after time.Duration) {
	l, err := n.find(id)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.retired() || n.background.Err() != nil:
	case after > 0:
		l.grants.Reset(after)
	default:
		l.armGrants()
	}
}

// armGrants sets the timer for the grant that is over first. The caller holds
// l.mu, or is the only one to know l.
func (l *live) armGrants() {
	if len(l.record.Grants) == 0 {
		l.grants.Stop()
		return
	}
	first := slices.MinFunc(l.record.Grants, func(a, b sandbox.Grant) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	l.grants.Reset(time.Until(first.ExpiresAt))
}

// dropExpired takes the grants out of adopted records whose time was over while
// no server ran, before the slots are adopted.
func (n *Node) dropExpired(ctx context.Context, found []tenant) error {
	now := time.Now()
	for i, t := range found {
		if len(sandbox.ActiveGrants(t.record.Grants, now)) == len(t.record.Grants) {
			continue
		}
		record, err := n.Store.UpdateSandbox(ctx, t.record.ID, func(s *store.Sandbox) error {
			s.Grants = sandbox.ActiveGrants(s.Grants, now)
			s.Generation++
			return nil
		})
		if errors.Is(err, store.ErrFull) {
			continue // Policy leaves them out, and the timer tries again
		}
		if err != nil {
			return fmt.Errorf("end grants of sandbox %s: %w", t.record.ID, err)
		}
		found[i].record = record
	}
	return nil
}
