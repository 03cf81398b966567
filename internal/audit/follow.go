package audit

import "context"

// Follower reads the log as it grows. It holds no records of its own: whoever
// reads too slowly loses what newer records push out, and is told how many
// those were. It is for one goroutine.
type Follower struct {
	log    *Log
	filter Filter
	wake   chan struct{} // holds one signal: there may be something new

	// The place of the next record to read: its sequence number in ring once
	// that is known, until then the one after the cursor.
	ring   *ring
	seq    uint64
	cursor uint64

	ended bool // the sandbox has; guarded by log.mu
}

// Follow begins to read what f wants, after f.Since. The caller closes the
// follower. A sandbox without records is waited for.
func (l *Log) Follow(f Filter) *Follower {
	w := &Follower{log: l, filter: f, wake: make(chan struct{}, 1), cursor: f.Since}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, w.ended = l.ended.teams[f.Sandbox]
	l.followers[w] = struct{}{}
	return w
}

// Close ends the follower.
func (w *Follower) Close() {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	delete(w.log.followers, w)
}

// Next returns the next records that match, waiting until there is one. It
// also returns, without records, when some were lost and no other has come. It
// ends with ctx, and with ErrEnded when the sandbox has ended and all is read.
func (w *Follower) Next(ctx context.Context) (Page, error) {
	var lost uint64
	for {
		found, n, ended := w.take()
		lost += n
		page := Page{Next: w.cursor, Lost: lost}
		page.fill(&w.filter, found)
		w.cursor = page.Next
		switch {
		case len(page.Records) > 0 || lost > 0 && len(found) == 0:
			return page, nil
		case len(found) > 0:
			continue
		case ended:
			return page, ErrEnded
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return page, ctx.Err()
		}
	}
}

// take removes from what is ahead as many records as one page can hold.
func (w *Follower) take() (found []*Record, lost uint64, ended bool) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	r := w.log.ringFor(&w.filter)
	if r == nil {
		return nil, 0, w.ended
	}
	if w.ring != r {
		w.ring = r
		w.seq, lost = r.find(w.cursor)
	}
	if oldest := r.oldest(); w.seq < oldest {
		lost = oldest - w.seq
		w.seq = oldest
	}
	found = r.from(w.seq, w.filter.limit())
	w.seq += uint64(len(found))
	return found, lost, w.ended
}

// signal says that there may be something new. It never waits. The caller
// holds log.mu.
func (w *Follower) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
