package dns

import (
	"time"

	"github.com/moat-sandbox/moat/internal/egress"
)

const (
	// memoTime is how long a reply may be given again as it is. In a second the
	// times to live in it become others.
	memoTime = time.Second
	// maxMemos and maxMemoSize bound what is kept of one sandbox.
	maxMemos    = 64
	maxMemoSize = udpSize
)

// memos are the replies that a sandbox was just given, by the datagram that asked
// for them without its id: to the same question in the same words there is the
// same reply. Their owner holds a lock.
type memos map[string]memo

type memo struct {
	tenant egress.Tenant // who asked, under the policy of then
	until  time.Time
	reply  []byte
	seen   Query
}

const idSize = 2

// get returns the reply to a datagram if it still holds.
func (ms memos) get(t egress.Tenant, packet []byte, now time.Time) (m memo, ok bool) {
	if len(packet) < headerSize {
		return m, false
	}
	m, ok = ms[string(packet[idSize:])]
	return m, ok && m.tenant == t && now.Before(m.until)
}

// put keeps a reply. What takes no more room is forgotten all at once: it would
// not have been of use for long.
func (ms memos) put(packet []byte, m memo) {
	if len(packet) > maxMemoSize || len(m.reply) > maxMemoSize {
		return
	}
	if len(ms) >= maxMemos {
		clear(ms)
	}
	ms[string(packet[idSize:])] = m
}

// holds returns until when a reply with records of the answer is the same.
func (a *Answer) holds(now time.Time) time.Time {
	if a.received.IsZero() {
		return time.Time{}
	}
	return a.received.Add(now.Sub(a.received).Truncate(time.Second) + time.Second)
}
