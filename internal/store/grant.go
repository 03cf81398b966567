package store

import (
	"slices"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// Policy is what the sandbox may reach at a time: its document, and the grants
// that are not over.
func (s Sandbox) Policy(now time.Time) policy.Document {
	return sandbox.WithGrants(s.Network, sandbox.ActiveGrants(s.Grants, now))
}

// AddGrant adds a grant, and drops those that are over when it begins.
// sandbox.ErrGrants.
func (s *Sandbox) AddGrant(g sandbox.Grant) error {
	active := sandbox.ActiveGrants(s.Grants, g.CreatedAt)
	if len(active) >= sandbox.MaxGrants {
		return sandbox.ErrGrants
	}
	s.Grants = append(active, g)
	return nil
}

// EndGrant takes out a grant, and those that are over. sandbox.ErrNoGrant.
func (s *Sandbox) EndGrant(id string, now time.Time) error {
	active := sandbox.ActiveGrants(s.Grants, now)
	i := slices.IndexFunc(active, func(g sandbox.Grant) bool { return g.ID == id })
	if i < 0 {
		return sandbox.ErrNoGrant
	}
	s.Grants = slices.Delete(active, i, i+1)
	return nil
}
