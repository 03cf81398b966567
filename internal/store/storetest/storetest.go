// Package storetest holds every implementation of store.Store to the same
// behaviour, and stands in for the node in tests of those that change records.
package storetest

import (
	"testing"

	"github.com/moat-sandbox/moat/internal/store"
)

// Open opens the store under test. After Close it opens the same records
// again.
type Open func() (store.Store, error)

// Run runs the suite. fresh is called once for each test and names a store that
// holds nothing yet.
func Run(t *testing.T, fresh func(t *testing.T) Open) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s *subject)
	}{
		{"sandbox keeps every field", sandboxRoundTrip},
		{"sandbox ids are unique", sandboxUnique},
		{"sandbox update", sandboxUpdate},
		{"sandbox update refused", sandboxUpdateRefused},
		{"sandbox updates do not get lost", sandboxConcurrentUpdates},
		{"sandbox delete", sandboxDelete},
		{"sandboxes by team", sandboxTeams},
		{"sandbox is a copy", sandboxCopy},
		{"key keeps every field", keyRoundTrip},
		{"key ids and hashes are unique", keyUnique},
		{"key delete", keyDelete},
		{"template keeps every field", templateRoundTrip},
		{"template replaced", templateReplaced},
		{"template name moves", templateNameMoves},
		{"template delete", templateDelete},
		{"secret keeps every field", secretRoundTrip},
		{"secrets by team", secretTeams},
		{"secret delete", secretDelete},
		{"records survive a restart", survival},
		{"cancelled context", cancelled},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &subject{open: fresh(t)}
			s.reopen(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			test.run(t, s)
		})
	}
}

// subject is the store under test; reopen puts a new one in its place.
type subject struct {
	store.Store
	open Open
}

func (s *subject) reopen(t *testing.T) {
	t.Helper()
	if s.Store != nil {
		must(t, s.Close())
	}
	opened, err := s.open()
	must(t, err)
	s.Store = opened
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
