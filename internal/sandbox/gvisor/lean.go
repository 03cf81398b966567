package gvisor

import (
	"math"
	"runtime/debug"
	"sync"
	"time"

	_ "unsafe" // for go:linkname

	_ "gvisor.dev/gvisor/pkg/sentry/seccheck"
)

const (
	// bootHeap is how much memory a sentry or gofer may use before it collects
	// garbage for the first time, in bytes. A boot stays below it.
	bootHeap = 32 << 20
	// bootTime is after which time garbage is collected as usual.
	bootTime = 2 * time.Second
)

// collectLater keeps a sentry or gofer from collecting garbage while it boots.
// Somewhat later, when nobody waits for it, all of it is given back at once.
func collectLater() {
	usual := debug.SetGCPercent(-1)
	debug.SetMemoryLimit(bootHeap)
	time.AfterFunc(bootTime, func() {
		debug.SetGCPercent(usual)
		debug.SetMemoryLimit(math.MaxInt64)
		debug.FreeOSMemory()
	})
}

//go:linkname tracePointsOnce gvisor.dev/gvisor/pkg/sentry/seccheck.initOnce
var tracePointsOnce sync.Once

// leaveOutTracePoints keeps a sentry from describing the hundreds of points at
// which it could be traced. They are of use only to sessions that a sentry is
// told of at its start, and ours are told of none.
func leaveOutTracePoints() { tracePointsOnce.Do(func() {}) }
