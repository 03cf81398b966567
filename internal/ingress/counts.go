package ingress

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Counts are totals since the start, of one sandbox or of all.
type Counts struct {
	// Requests are all for a known sandbox; of all sandboxes together, those
	// for unknown ones and malformed addresses too.
	Requests uint64
	InFlight int64 // passed to a sandbox and not over yet, upgraded ones too
	// BytesIn went to sandboxes, BytesOut came from them: bodies and upgraded
	// connections.
	BytesIn, BytesOut uint64
	// Failures are the answers given in place of a sandbox, by error_code.
	Failures map[string]uint64
}

// Plus adds up two counts.
func (c Counts) Plus(d Counts) Counts {
	sum := Counts{
		Requests: c.Requests + d.Requests, InFlight: c.InFlight + d.InFlight,
		BytesIn: c.BytesIn + d.BytesIn, BytesOut: c.BytesOut + d.BytesOut,
		Failures: make(map[string]uint64),
	}
	for _, failures := range []map[string]uint64{c.Failures, d.Failures} {
		for code, n := range failures {
			sum.Failures[code] += n
		}
	}
	return sum
}

// Metrics is everything that is counted.
type Metrics struct {
	Total Counts
	// Sandboxes holds the lives that are not over and were asked for at all.
	Sandboxes map[string]Counts
	// Connections are those of clients now; Refused ones came beyond the limit.
	Connections        int64
	ConnectionsRefused uint64
}

// Metrics returns the counts as they are now.
func (in *Ingress) Metrics() Metrics {
	m := Metrics{
		Total:              in.total.counts(),
		Sandboxes:          make(map[string]Counts),
		Connections:        in.clients.count(),
		ConnectionsRefused: in.clients.refused.Load(),
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, up := range in.upstreams {
		m.Sandboxes[up.id] = up.tally.counts()
	}
	return m
}

// tally counts for one sandbox or for all. The zero value is ready to use.
type tally struct {
	requests, bytesIn, bytesOut atomic.Uint64
	inFlight                    atomic.Int64

	mu       sync.Mutex
	failures map[string]uint64 // guarded by mu; no more keys than there are codes
}

func (t *tally) fail(code string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failures == nil {
		t.failures = make(map[string]uint64)
	}
	t.failures[code]++
}

func (t *tally) counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Counts{
		Requests: t.requests.Load(),
		InFlight: t.inFlight.Load(),
		BytesIn:  t.bytesIn.Load(),
		BytesOut: t.bytesOut.Load(),
		Failures: maps.Clone(t.failures),
	}
}

// meter counts what passes in one exchange, for itself and for the tallies.
type meter struct {
	in, out atomic.Int64
	tallies [2]*tally
}

// inFlight adds to the exchanges that are under way.
func (m *meter) inFlight(n int64) {
	for _, t := range m.tallies {
		t.inFlight.Add(n)
	}
}

func (m *meter) toApp(n int) {
	m.in.Add(int64(n))
	for _, t := range m.tallies {
		t.bytesIn.Add(uint64(n))
	}
}

func (m *meter) toClient(n int) {
	m.out.Add(int64(n))
	for _, t := range m.tallies {
		t.bytesOut.Add(uint64(n))
	}
}
