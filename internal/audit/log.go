package audit

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// How many records are kept when Config says nothing.
const (
	DefaultPerSandbox = 4096
	DefaultTotal      = 65_536
)

// Config is what a Log is made of. Its zero value is usable.
type Config struct {
	// PerSandbox is how many records are kept for each sandbox; 0 means
	// DefaultPerSandbox.
	PerSandbox int
	// Total is how many records are kept for the view over all sandboxes, which
	// remembers also those that are forgotten; 0 means DefaultTotal.
	Total int
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
	if cfg.PerSandbox == 0 {
		cfg.PerSandbox = DefaultPerSandbox
	}
	if cfg.Total == 0 {
		cfg.Total = DefaultTotal
	}
	return &Log{
		perSandbox: cfg.PerSandbox,
		file:       cfg.File,
		// Cursors go on growing after a restart unless there was more than one
		// record per microsecond.
		cursor:    uint64(time.Now().UnixMicro()),
		all:       newRing(cfg.Total),
		sandboxes: make(map[string]*ring),
		followers: make(map[*Follower]struct{}),
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
	l.cursor++
	rec.Cursor = l.cursor
	l.all.push(rec)
	if r.Sandbox != "" {
		l.ringOf(r.Sandbox).push(rec)
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

// ringOf returns a sandbox's ring, making it on first use. The caller holds
// l.mu.
func (l *Log) ringOf(sandbox string) *ring {
	r, ok := l.sandboxes[sandbox]
	if !ok {
		r = newRing(l.perSandbox)
		l.sandboxes[sandbox] = r
	}
	return r
}

// Forget drops the records of a sandbox that has ended, and ends who follows
// them. The view over all sandboxes keeps its share of them until newer ones
// take their place.
func (l *Log) Forget(sandbox string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sandboxes, sandbox)
	for f := range l.followers {
		if f.filter.Sandbox == sandbox {
			f.forgotten = true
			f.signal()
		}
	}
}

// ErrForgotten ends who follows a sandbox that has ended.
var ErrForgotten = errors.New("the sandbox has ended and its records are forgotten")
