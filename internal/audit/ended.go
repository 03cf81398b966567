package audit

import (
	"errors"
	"time"
)

// ErrEnded ends who follows a sandbox that has ended.
var ErrEnded = errors.New("the sandbox has ended")

// ended knows the sandboxes that have ended and whose records are still kept,
// because whoever asks why something failed often asks too late. Its owner
// holds a lock.
type ended struct {
	retain time.Duration
	limit  int // of records

	teams map[string]string // by sandbox
	order []farewell        // the first to end first
	kept  int               // records in all of order
}

type farewell struct {
	sandbox string
	at      time.Time
	// records are counted once; the few that come later do not matter. The
	// sandbox itself counts as one.
	records int
}

// Retire says that a sandbox has ended. Who follows it is told, and its records
// stay readable for a while, for its team.
func (l *Log) Retire(sandbox, team string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.ended.teams[sandbox]; known {
		return
	}
	bye := farewell{sandbox: sandbox, at: time.Now(), records: 1}
	if r := l.sandboxes[sandbox]; r != nil {
		bye.records += len(r.records)
	}
	l.ended.teams[sandbox] = team
	l.ended.order = append(l.ended.order, bye)
	l.ended.kept += bye.records
	l.forgetEnded()
	for f := range l.followers {
		if f.filter.Sandbox == sandbox && !f.filter.Everyone {
			f.ended = true
			f.signal()
		}
	}
}

// Team returns whose a sandbox was that has ended and whose records are still
// kept. Of sandboxes that live the log does not know it.
func (l *Log) Team(sandbox string) (team string, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetEnded()
	team, known = l.ended.teams[sandbox]
	return team, known
}

// forgetEnded drops the records of those that ended long ago, or before too
// many others. The view over all sandboxes keeps its share of them until newer
// ones take their place. The caller holds l.mu.
func (l *Log) forgetEnded() {
	e := &l.ended
	now := time.Now()
	for len(e.order) > 0 && (now.Sub(e.order[0].at) > e.retain || e.kept > e.limit) {
		oldest := e.order[0]
		e.order = e.order[1:]
		e.kept -= oldest.records
		delete(e.teams, oldest.sandbox)
		delete(l.sandboxes, oldest.sandbox)
	}
}
