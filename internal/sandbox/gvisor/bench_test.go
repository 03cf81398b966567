package gvisor

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

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

// BenchmarkMemory reports what one more idle box costs the machine, in MiB:
// the change of MemAvailable over ten boxes, after a first one.
func BenchmarkMemory(b *testing.B) {
	l := newLab(b)
	for name, root := range map[string]*sandbox.Root{"prepared": nil, "image": &l.image, "dir": &l.host} {
		b.Run(name, func(b *testing.B) {
			const boxes = 10
			for b.Loop() {
				r := newRuntime(b)
				var charged int64
				add := func() {
					s := newSlot(b)
					box, err := r.Prepare(b.Context(), sandbox.NewBoxID(), s.path(), testLimits)
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { _ = box.Destroy(context.Background()) })
					defer func() {
						u, err := box.Usage(b.Context())
						if err != nil {
							b.Fatal(err)
						}
						charged += u.MemoryBytes
					}()
					if root == nil {
						return
					}
					if err := box.Start(b.Context(), sandbox.StartSpec{Hostname: "castle", Root: *root, Guest: l.guest, Limits: testLimits}); err != nil {
						b.Fatal(err)
					}
					s.must(b, request{Op: "ping"})
				}
				add()
				before := memAvailable(b)
				for range boxes {
					add()
				}
				b.ReportMetric(float64(before-memAvailable(b))/boxes/1024, "MiB/box")
				b.ReportMetric(float64(charged)/(boxes+1)/(1<<20), "cgroup-MiB/box")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
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
