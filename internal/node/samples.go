package node

import (
	"context"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

const (
	// sampleEvery is how often every sandbox is read: often enough for a graph,
	// rare enough that idle sandboxes stay idle.
	sampleEvery = 15 * time.Second
	// samplesKept bounds the history of one sandbox: an hour.
	samplesKept = 240
	// sampleFresh is the age below which a reading answers for the present.
	sampleFresh = time.Second
	// sampleTimeout bounds one reading; a busy sandbox is skipped, not waited for.
	sampleTimeout = 2 * time.Second
)

// Samples returns the readings of a sandbox between from and to; a zero time
// leaves that side open. If the present is asked for and the last reading is
// old, a new one is taken.
func (n *Node) Samples(ctx context.Context, id string, from, to time.Time) ([]sandbox.Sample, error) {
	l, err := n.find(id)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if (to.IsZero() || to.After(now)) && now.Sub(l.lastSample()) > sampleFresh {
		n.read(ctx, l)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	selected := make([]sandbox.Sample, 0, len(l.samples))
	for _, s := range l.samples {
		if (from.IsZero() || !s.At.Before(from)) && (to.IsZero() || !s.At.After(to)) {
			selected = append(selected, s)
		}
	}
	return selected, nil
}

// sample reads all sandboxes in turn until ctx ends.
func (n *Node) sample(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, id := range n.ids() {
			if l, err := n.find(id); err == nil && ctx.Err() == nil {
				n.read(ctx, l)
			}
		}
	}
}

// read takes one reading. A sandbox that does not answer has a gap in its
// history; that is all there is to say about it.
func (n *Node) read(ctx context.Context, l *live) {
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	s, err := n.guest.sample(ctx, l.slot.IP4, n.GuestToken(l.snapshot()))
	if err != nil {
		n.Logger.Debug("read sandbox metrics", "sandbox", l.snapshot().ID, "error", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.samples) == samplesKept {
		l.samples = append(l.samples[:0], l.samples[1:]...)
	}
	l.samples = append(l.samples, s)
}

func (l *live) lastSample() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.samples) == 0 {
		return time.Time{}
	}
	return l.samples[len(l.samples)-1].At
}
