package gvisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// BenchmarkBox measures the life of a box, one at a time, in milliseconds:
// prepare (what a pool does ahead), start (the call), answer (from the start to
// the guest's first answer over TCP) and destroy. Medians and 95th percentiles.
func BenchmarkBox(b *testing.B) {
	l := newLab(b)
	for name, root := range map[string]sandbox.Root{"image": l.image, "dir": l.host} {
		b.Run(name, func(b *testing.B) {
			r := newRuntime(b)
			steps := map[string][]time.Duration{}
			for b.Loop() {
				measureBox(b, r, l, root, steps)
			}
			b.ReportMetric(0, "ns/op") // the sum says nothing
			for step, times := range steps {
				slices.Sort(times)
				b.ReportMetric(milliseconds(times[len(times)/2]), step+"-p50-ms")
				b.ReportMetric(milliseconds(times[len(times)*95/100]), step+"-p95-ms")
			}
		})
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func measureBox(b *testing.B, r *Runtime, l *lab, root sandbox.Root, steps map[string][]time.Duration) {
	s := newSlot(b)
	ctx := context.Background()
	last := time.Now()
	lap := func(step string) {
		now := time.Now()
		steps[step] = append(steps[step], now.Sub(last))
		last = now
	}
	box, err := r.Prepare(ctx, sandbox.NewBoxID(), s.path(), testLimits)
	if err != nil {
		b.Fatal(err)
	}
	lap("prepare")
	begin := last
	if err := box.Start(ctx, sandbox.StartSpec{Hostname: "castle", Root: root, Guest: l.guest, Limits: testLimits}); err != nil {
		b.Fatal(err)
	}
	lap("start")
	s.must(b, request{Op: "ping"})
	steps["answer"] = append(steps["answer"], time.Since(begin))
	last = time.Now()
	if err := box.Destroy(ctx); err != nil {
		b.Fatal(err)
	}
	lap("destroy")
}

// BenchmarkChurn reports how many boxes per second are made, used once and
// destroyed by four goroutines, and the processor time of each, which does not
// depend on what else the machine does.
func BenchmarkChurn(b *testing.B) {
	l := newLab(b)
	for name, root := range l.roots() {
		b.Run(name, func(b *testing.B) {
			r := newRuntime(b)
			before := cpuTime(b)
			var next atomic.Int64
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if err := useOnce(b, r, l.startSpec(root, testLimits)); err != nil {
							b.Error(err)
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "boxes/s")
			b.ReportMetric(milliseconds(cpuTime(b)-before)/float64(b.N), "cpu-ms/box")
		})
	}
}

// cpuTime is what this process and the children it has reaped have used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

// useOnce makes a box, asks its guest once and destroys it.
func useOnce(b *testing.B, r *Runtime, spec sandbox.StartSpec) (err error) {
	s := newSlot(b)
	defer s.close()
	ctx := b.Context()
	box, err := r.Prepare(ctx, sandbox.NewBoxID(), s.path(), testLimits)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.Destroy(ctx)) }()
	if err := box.Start(ctx, spec); err != nil {
		return err
	}
	_, err = s.ask(20*time.Second, request{Op: "ping"})
	return err
}

// BenchmarkMemory reports what one more idle box costs, in MiB: by the change of
// the machine's available memory over ten boxes, after a first one, which is
// right only when nothing else runs, and by what the box's cgroup is charged.
func BenchmarkMemory(b *testing.B) {
	l := newLab(b)
	for name, root := range map[string]*sandbox.Root{"prepared": nil, "image": &l.image, "dir": &l.host} {
		b.Run(name, func(b *testing.B) {
			r := newRuntime(b)
			for b.Loop() {
				measureMemory(b, r, l, root)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func measureMemory(b *testing.B, r *Runtime, l *lab, root *sandbox.Root) {
	const boxes = 10
	var before int
	var charged int64
	for i := range 1 + boxes {
		if i == 1 {
			before = memAvailable(b)
		}
		box := idleBox(b, r, l, root)
		defer func() {
			if err := box.Destroy(context.Background()); err != nil {
				b.Error(err)
			}
		}()
		u, err := box.Usage(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		charged += u.MemoryBytes
	}
	b.ReportMetric(float64(before-memAvailable(b))/boxes/1024, "MiB/box")
	b.ReportMetric(float64(charged)/(1+boxes)/(1<<20), "charged-MiB/box")
}

// idleBox returns a box that is prepared only when root is nil, and else has
// answered once.
func idleBox(b *testing.B, r *Runtime, l *lab, root *sandbox.Root) sandbox.Box {
	b.Helper()
	s := newSlot(b)
	box, err := r.Prepare(b.Context(), sandbox.NewBoxID(), s.path(), testLimits)
	if err != nil {
		b.Fatal(err)
	}
	if root != nil {
		if err := box.Start(b.Context(), l.startSpec(*root, testLimits)); err != nil {
			b.Fatal(err)
		}
		s.must(b, request{Op: "ping"})
	}
	return box
}

// memAvailable reads the machine's available memory in KiB.
func memAvailable(b *testing.B) int {
	b.Helper()
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			var kib int
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				b.Fatal(err)
			}
			return kib
		}
	}
	b.Fatal("no MemAvailable in /proc/meminfo")
	return 0
}
