package node

import (
	"context"
	"sync"
	"time"
)

const (
	// lullLength is how long nobody must have asked for a sandbox before boxes
	// are booted ahead: a boot takes the processors from the new sandbox's
	// first commands.
	lullLength = 150 * time.Millisecond
	// lullPatience is how long to wait for that where somebody always asks.
	lullPatience = time.Second
)

// lull knows when somebody last asked for a sandbox. The zero lull is ready.
type lull struct {
	mu   sync.Mutex
	last time.Time
}

// disturb notes that a sandbox is being created, or has just been.
func (l *lull) disturb() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = time.Now()
}

// await returns when it has been quiet for long enough, or when patience or ctx
// ends.
func (l *lull) await(ctx context.Context) {
	patience := time.Now().Add(lullPatience)
	for {
		l.mu.Lock()
		until := l.last.Add(lullLength)
		l.mu.Unlock()
		if until.After(patience) {
			until = patience
		}
		left := time.Until(until)
		if left <= 0 {
			return
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return
		}
	}
}
