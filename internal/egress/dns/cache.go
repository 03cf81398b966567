package dns

import (
	"container/list"
	"time"
)

// entryOverhead is what an entry of the cache takes beside its records, in
// bytes, roughly.
const entryOverhead = 512

// cache remembers answers for as long as they are valid. It is bounded by
// memory; what was not asked for longest goes first. Its owner holds a lock.
type cache struct {
	limit, size int // bytes
	entries     map[question]*list.Element
	recent      *list.List // of *cached, the latest used in front
}

type cached struct {
	question question
	answer   *Answer
	size     int
}

func newCache(limit int) *cache {
	return &cache{limit: limit, entries: make(map[question]*list.Element), recent: list.New()}
}

// get returns nil for what is not known or not valid any more.
func (c *cache) get(q question, now time.Time) *Answer {
	e := c.entries[q]
	if e == nil {
		return nil
	}
	answer := e.Value.(*cached).answer
	if answer.validFor(now) <= 0 {
		c.remove(e)
		return nil
	}
	c.recent.MoveToFront(e)
	return answer
}

// put remembers an answer unless it is not valid even now.
func (c *cache) put(q question, answer *Answer, now time.Time) {
	if e := c.entries[q]; e != nil {
		c.remove(e)
	}
	size := answer.size() + entryOverhead
	if size > c.limit || answer.validFor(now) <= 0 {
		return
	}
	c.entries[q] = c.recent.PushFront(&cached{q, answer, size})
	c.size += size
	for c.size > c.limit {
		c.remove(c.recent.Back())
	}
}

func (c *cache) remove(e *list.Element) {
	gone := c.recent.Remove(e).(*cached)
	delete(c.entries, gone.question)
	c.size -= gone.size
}
