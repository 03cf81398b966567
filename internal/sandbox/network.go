package sandbox

import (
	"errors"
	"slices"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// NetworkChange replaces what a sandbox may reach.
type NetworkChange struct {
	Document policy.Document
	// Internet is the flag exactly as given; its meaning is already part of
	// Document.
	Internet *bool
	// IfGeneration is the number that the network must still have, or else
	// ErrGeneration; 0 means any.
	IfGeneration uint64
	// KeepRules leaves the rules about requests as they are, with their secrets;
	// those of Document are the same without.
	KeepRules bool
	// KeepGrants leaves the temporary grants alone. Otherwise they end: the
	// document alone says what is reachable.
	KeepGrants bool
}

// Grant allows entries of allowOut for a while, beside the document.
type Grant struct {
	ID        string    `json:"id"`
	AllowOut  []string  `json:"allowOut"`
	CreatedAt time.Time `json:"createdAt"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// NewGrantID returns a fresh id of a grant.
func NewGrantID() string { return "g" + randomName(8) }

// ActiveGrants returns those whose time is not over. It never changes its
// argument.
func ActiveGrants(all []Grant, now time.Time) []Grant {
	var active []Grant
	for _, g := range all {
		if g.ExpiresAt.After(now) {
			active = append(active, g)
		}
	}
	return active
}

// WithGrants is the document with the entries of grants, which come after its
// own.
func WithGrants(doc policy.Document, grants []Grant) policy.Document {
	doc.AllowOut = slices.Clip(doc.AllowOut) // appending must not write into the caller's
	for _, g := range grants {
		doc.AllowOut = append(doc.AllowOut, g.AllowOut...)
	}
	return doc
}

// MaxGrants is how many grants a sandbox has at once.
const MaxGrants = 100

var (
	// ErrGeneration: the network was changed by somebody else meanwhile.
	ErrGeneration = errors.New("the network has another generation by now")
	// ErrNoGrant: the grant has ended, or there never was one.
	ErrNoGrant = errors.New("grant not found")
	// ErrGrants: the sandbox has as many grants as it may have.
	ErrGrants = errors.New("the sandbox has too many grants")
)
