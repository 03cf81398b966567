package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// What a File does when FileConfig says nothing.
const (
	DefaultFileBytes = 64 << 20
	DefaultFileKeep  = 4
	DefaultQueue     = 16_384
)

// batchSize is how many bytes are collected before they are written while more
// records are waiting.
const batchSize = 64 << 10

// collectTime is how long a record may wait for others to be written with it.
// The queue holds what comes meanwhile.
const collectTime = 50 * time.Millisecond

// FileConfig says where and how a File writes.
type FileConfig struct {
	// Path is the current file. Older ones have .1, .2 and so on appended, the
	// oldest the greatest number.
	Path string
	// MaxBytes is how long the current file may become before a new one is
	// begun; 0 means DefaultFileBytes.
	MaxBytes int64
	// Keep is how many older files are kept; 0 means DefaultFileKeep.
	Keep int
	// Queue is how many records may wait to be written; 0 means DefaultQueue.
	Queue  int
	Logger *slog.Logger
}

// File writes records as lines of JSON, in the background. A record that finds
// the queue full, or that cannot be written, is dropped, and a later line says
// how many were.
type File struct {
	queue chan *Record
	log   *slog.Logger
	// dropped are those that no line has told of yet, lost is all of them.
	dropped, lost atomic.Uint64

	// Used by Run alone.
	out    rotating
	batch  []byte
	count  uint64 // records in batch
	told   uint64 // dropped records that batch tells of
	broken bool   // writing failed, and log knows
}

// OpenFile checks the configuration and opens the file; what is in it stays.
// Run writes and closes it.
func OpenFile(cfg FileConfig) (*File, error) {
	switch {
	case cfg.Path == "":
		return nil, errors.New("audit file: no path given")
	case cfg.Logger == nil:
		return nil, errors.New("audit file: no logger given")
	case cfg.MaxBytes < 0 || cfg.Keep < 0 || cfg.Queue < 0:
		return nil, fmt.Errorf("audit file: negative limit among %d bytes, %d files and %d records", cfg.MaxBytes, cfg.Keep, cfg.Queue)
	}
	f := &File{
		queue: make(chan *Record, orDefault(cfg.Queue, DefaultQueue)),
		log:   cfg.Logger,
		out: rotating{
			path: cfg.Path,
			max:  orDefault(cfg.MaxBytes, DefaultFileBytes),
			keep: orDefault(cfg.Keep, DefaultFileKeep),
		},
	}
	if err := f.out.open(); err != nil {
		return nil, fmt.Errorf("audit file: %w", err)
	}
	return f, nil
}

func orDefault[N int | int64](n, otherwise N) N {
	if n == 0 {
		return otherwise
	}
	return n
}

// Dropped returns how many records are missing in the file.
func (f *File) Dropped() uint64 { return f.lost.Load() }

// add hands over a record. It never waits.
func (f *File) add(r *Record) {
	select {
	case f.queue <- r:
	default:
		f.drop(1)
	}
}

func (f *File) drop(n uint64) {
	f.dropped.Add(n)
	f.lost.Add(n)
}

// Run writes until ctx ends, then what is still waiting, and closes the file.
func (f *File) Run(ctx context.Context) error {
	for {
		select {
		case r := <-f.queue:
			f.put(r)
			f.collect(ctx)
			f.flush()
		case <-ctx.Done():
			return f.finish()
		}
	}
}

// collect adds what comes within a moment. To wake up for each record would cost
// a busy server more than writing it does.
func (f *File) collect(ctx context.Context) {
	timer := time.NewTimer(collectTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	for len(f.queue) > 0 {
		f.put(<-f.queue)
		if len(f.batch) >= batchSize {
			f.flush()
		}
	}
}

func (f *File) finish() error {
	for len(f.queue) > 0 {
		f.put(<-f.queue)
	}
	f.flush()
	if err := f.out.close(); err != nil {
		return fmt.Errorf("close audit file: %w", err)
	}
	return nil
}

// put adds a record to the batch, after a line about those that were dropped
// before it.
func (f *File) put(r *Record) {
	if n := f.dropped.Swap(0); n > 0 {
		f.told += n
		f.line(appendDropped(f.batch, r.Time, n))
	}
	f.count++
	f.line(r.appendJSON(f.batch))
}

// line takes the batch with an object more and ends its line.
func (f *File) line(batch []byte, err error) {
	if err != nil { // a time outside of the years that JSON knows
		f.log.Error("audit record cannot be written", "err", err)
		return
	}
	f.batch = append(batch, '\n')
}

// flush writes the batch. If that fails its records are dropped, and nobody
// has been told of the earlier ones.
func (f *File) flush() {
	if len(f.batch) == 0 {
		return
	}
	err := f.out.write(f.batch)
	switch {
	case err != nil && !f.broken:
		f.log.Error("audit records cannot be written", "file", f.out.path, "err", err)
	case err == nil && f.broken:
		f.log.Info("audit records can be written again", "file", f.out.path)
	}
	if f.broken = err != nil; f.broken {
		f.drop(f.count)
		f.dropped.Add(f.told)
	}
	f.batch, f.count, f.told = f.batch[:0], 0, 0
}
