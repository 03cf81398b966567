package audit

import "sort"

// ring keeps the latest records in the order of their cursors. It takes memory
// only as it fills. Its owner holds a lock.
type ring struct {
	limit   int
	records []*Record
	first   int // index of the oldest, once there are as many as limit
	// pushed counts all records there ever were. The first one has the sequence
	// number 0, so pushed is the number of the next.
	pushed  uint64
	evicted uint64 // cursor of the last record that is not there any more
}

// newRing returns an empty ring. What there was up to the cursor is gone.
func newRing(limit int, cursor uint64) *ring { return &ring{limit: limit, evicted: cursor} }

func (r *ring) push(rec *Record) {
	r.pushed++
	if len(r.records) < r.limit {
		r.records = append(r.records, rec)
		return
	}
	r.evicted = r.records[r.first].Cursor
	r.records[r.first] = rec
	r.first = (r.first + 1) % r.limit
}

// latest returns the cursor of the youngest record.
func (r *ring) latest() uint64 {
	if len(r.records) == 0 {
		return r.evicted
	}
	return r.at(len(r.records) - 1).Cursor
}

// oldest returns the sequence number of the oldest record that is still there.
func (r *ring) oldest() uint64 { return r.pushed - uint64(len(r.records)) }

// find returns the sequence number of the first record after a cursor, and how
// many of those after it are gone. When the cursor itself is gone only that
// there are some is known, and 1 stands for it.
func (r *ring) find(cursor uint64) (seq, lost uint64) {
	n := sort.Search(len(r.records), func(i int) bool { return r.at(i).Cursor > cursor })
	switch {
	case cursor == 0:
		lost = r.oldest()
	case cursor < r.evicted:
		lost = 1
	}
	return r.oldest() + uint64(n), lost
}

// at returns the record that is i places younger than the oldest.
func (r *ring) at(i int) *Record { return r.records[(r.first+i)%len(r.records)] }

// from returns the records from a sequence number on, at most limit of them.
func (r *ring) from(seq uint64, limit int) []*Record {
	start := int(seq - r.oldest())
	found := make([]*Record, min(limit, len(r.records)-start))
	older := r.records[r.first:] // the ring unrolled is older, then the rest
	if start < len(older) {
		n := copy(found, older[start:])
		copy(found[n:], r.records[:r.first])
	} else {
		copy(found, r.records[start-len(older):r.first])
	}
	return found
}
