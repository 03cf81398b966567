package audit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// How many records are kept, and how long after a sandbox's end, when Config
// says nothing.
const (
	DefaultPerSandbox = 4096
	DefaultTotal      = 65_536
	DefaultRetain     = time.Hour
)

// Config is what a Log is made of. Its zero value is usable.
type Config struct {
	// PerSandbox is how many records are kept for each sandbox; 0 means
	// DefaultPerSandbox.
	PerSandbox int
	// Total is how many records are kept for the view over all sandboxes, which
	// remembers also those that are forgotten; 0 means DefaultTotal.
	Total int
	// Retain is how long the records of a sandbox that has ended are kept apart
	// from those of others; 0 means DefaultRetain. Of all such sandboxes together
	// no more than Total records are kept: the ones that ended first go first.
	Retain time.Duration
	// File is given every record as well; nil when there is none.
	File *File
}

// Log holds the latest records of every sandbox in memory. It is safe for
// concurrent use.
type Log struct {
	perSandbox int
	file       *File

	mu        sync.Mutex // guards everything below, and is never held for long
	cursor    uint64     // of the latest record
	all       *ring
	sandboxes map[string]*ring
	ended     ended
	followers map[*Follower]struct{}
}

// New checks the configuration and returns an empty log.
func New(cfg Config) (*Log, error) {
	if cfg.PerSandbox < 0 {
		return nil, fmt.Errorf("audit: %d records per sandbox are less than none", cfg.PerSandbox)
	}
	if cfg.Total < 0 {
		return nil, fmt.Errorf("audit: %d records in total are less than none", cfg.Total)
	}
	if cfg.Retain < 0 {
		return nil, fmt.Errorf("audit: records kept for %v", cfg.Retain)
	}
	if cfg.PerSandbox == 0 {
		cfg.PerSandbox = DefaultPerSandbox
	}
	if cfg.Total == 0 {
		cfg.Total = DefaultTotal
	}
	if cfg.Retain == 0 {
		cfg.Retain = DefaultRetain
	}
	// Cursors go on growing after a restart unless there was more than one
	// record per microsecond.
	start := uint64(time.Now().UnixMicro())
	return &Log{
		perSandbox: cfg.PerSandbox,
		file:       cfg.File,
		cursor:     start,
		all:        newRing(cfg.Total, start),
		sandboxes:  make(map[string]*ring),
		ended:      ended{retain: cfg.Retain, limit: cfg.Total, teams: make(map[string]string)},
		followers:  make(map[*Follower]struct{}),
	}, nil
}

// Append adds a record and gives it its cursor. A record without an id gets
// one. It never waits for anybody who reads.
func (l *Log) Append(r Record) {
	r.bound()
	if r.ID == 0 {
		r.ID = NewID()
	}
	rec := &r
	l.mu.Lock()
	defer l.mu.Unlock()
	var own *ring
	if r.Sandbox != "" {
		own = l.ringOf(r.Sandbox)
	}
	l.cursor++
	rec.Cursor = l.cursor
	l.all.push(rec)
	if own != nil {
		own.push(rec)
	}
	for f := range l.followers {
		if f.filter.covers(rec) {
			f.signal()
		}
	}
	if l.file != nil {
		l.file.add(rec)
	}
}

// maxRings bounds for how many sandboxes there are records: some may come for
// one that is forgotten, and make it known again.
const maxRings = 16_384

// ringOf returns a sandbox's ring, making it on first use. The caller holds
// l.mu.
func (l *Log) ringOf(sandbox string) *ring {
	r, ok := l.sandboxes[sandbox]
	if !ok {
		if len(l.sandboxes) >= maxRings {
			l.forgetQuiet()
		}
		// Whoever has a cursor knows of earlier records, which are gone then.
		r = newRing(l.perSandbox, l.cursor)
		l.sandboxes[sandbox] = r
	}
	return r
}

// forgetQuiet drops the records of the quarter of the sandboxes that have been
// quiet for longest. The caller holds l.mu.
func (l *Log) forgetQuiet() {
	quiet := slices.SortedFunc(maps.Keys(l.sandboxes), func(a, b string) int {
		return cmp.Compare(l.sandboxes[a].latest(), l.sandboxes[b].latest())
	})
	for _, sandbox := range quiet[:len(quiet)/4] {
		delete(l.sandboxes, sandbox)
	}
}
