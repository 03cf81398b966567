package lab

import "sync"

// seenLimit bounds what a lab that runs for long remembers.
const seenLimit = 100_000

// seen is a bounded record of what a server was asked. When it is full, new
// entries are dropped: tests read it long before.
type seen[T any] struct {
	mu      sync.Mutex
	entries []T
}

func (s *seen[T]) add(entry T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.entries) < seenLimit {
		s.entries = append(s.entries, entry)
	}
}

func (s *seen[T]) list() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]T(nil), s.entries...)
}
