// Package load makes the load of benchmarks and answers it. A Load runs in a
// process of its own, in the network namespace of whoever shall be its source,
// and is bounded in count and in time.
package load

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Kind is what a Load does.
type Kind string

// Connections and downloads are answered by Serve.
const (
	// Connections opens connections, each for one byte of answer.
	Connections Kind = "connections"
	// Download receives as much as it can over each worker's connection.
	Download Kind = "download"
	// Queries asks a DNS server over UDP.
	Queries Kind = "queries"
	// Refused opens connections until one is refused.
	Refused Kind = "refused"
	// Cut talks over one connection until it ends.
	Cut Kind = "cut"
)

// Load says what to do.
type Load struct {
	Kind Kind
	// Target is an address with a port.
	Target string
	// Name is the server's in a ClientHello, or what is asked for.
	Name string
	// Workers do the same at the same time; each waits for its answers.
	Workers int
	// Count and Time end the load, whichever is first.
	Count int
	Time  time.Duration
}

// Outcome is what came of a Load.
type Outcome struct {
	// Count is how often it was done, Bytes what was received.
	Count int
	Bytes int64
	Took  time.Duration
	// Waited is how long each took to its answer's first byte, sorted.
	Waited []time.Duration
	// At is when Refused and Cut ended, on the clock that Now reads.
	At time.Duration
}

// Rate is how often it was done in a second.
func (o Outcome) Rate() float64 { return float64(o.Count) / o.Took.Seconds() }

// Speed is how many MB were received in a second.
func (o Outcome) Speed() float64 { return float64(o.Bytes) / 1e6 / o.Took.Seconds() }

// Quantile is how long that share of all waited at most.
func (o Outcome) Quantile(share float64) time.Duration {
	if len(o.Waited) == 0 {
		return 0
	}
	return o.Waited[int(share*float64(len(o.Waited)-1))]
}

// Run does what a Load says, and returns the first error of any worker.
func (l Load) Run(ctx context.Context) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, l.Time+patience)
	defer cancel()
	switch l.Kind {
	case Connections:
		return l.share(ctx, l.connections)
	case Download:
		return l.share(ctx, l.download)
	case Queries:
		return l.share(ctx, l.queries)
	case Refused:
		return l.untilRefused(ctx)
	case Cut:
		return l.untilCut(ctx)
	default:
		return Outcome{}, fmt.Errorf("load: unknown kind %q", l.Kind)
	}
}

// patience is how long answers may take beyond the time of a load.
const patience = 10 * time.Second

// worker is one of those that share a load.
type worker struct {
	turns int // how often it may still do it
	ready *sync.WaitGroup
	start <-chan struct{}
	until time.Time // valid after begin
	time  time.Duration
	once  sync.Once

	count  int
	bytes  int64
	waited []time.Duration
}

// begin waits until all workers have made their preparations.
func (w *worker) begin() {
	w.once.Do(w.ready.Done)
	<-w.start
	w.until = time.Now().Add(w.time)
}

// more reports whether the worker shall do it once more.
func (w *worker) more() bool {
	w.turns--
	return w.turns >= 0 && time.Now().Before(w.until)
}

// done counts one answer, which began to arrive that long after it was asked for.
func (w *worker) done(waited time.Duration, bytes int64) {
	w.count++
	w.bytes += bytes
	w.waited = append(w.waited, waited)
}

// share divides the load between workers and adds up what they did.
func (l Load) share(ctx context.Context, work func(context.Context, *worker) error) (Outcome, error) {
	var ready, running sync.WaitGroup
	start := make(chan struct{})
	workers, errs := make([]*worker, l.Workers), make([]error, l.Workers)
	ready.Add(l.Workers)
	for i := range workers {
		w := &worker{turns: l.Count / l.Workers, ready: &ready, start: start, time: l.Time}
		workers[i] = w
		running.Go(func() {
			defer w.once.Do(ready.Done) // also if it fails before it begins
			errs[i] = work(ctx, w)
		})
	}
	ready.Wait()
	began := time.Now()
	close(start)
	running.Wait()
	o := Outcome{Took: time.Since(began)}
	for i, w := range workers {
		if errs[i] != nil {
			return Outcome{}, fmt.Errorf("%s to %s: %w", l.Kind, l.Target, errs[i])
		}
		o.Count += w.count
		o.Bytes += w.bytes
		o.Waited = append(o.Waited, w.waited...)
	}
	slices.Sort(o.Waited)
	return o, nil
}
