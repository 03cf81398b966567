// Package bench measures the real server from outside, in a laboratory. It says
// how fast and how small; it fails only when something does not work.
package bench

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// poolSize is more than any benchmark takes at once, so that pooled creates
// never wait for a boot.
const poolSize = 10

// BenchmarkCreate measures from the request for a sandbox to the first output
// of a command in it.
func BenchmarkCreate(b *testing.B) {
	for _, server := range []struct {
		name string
		pool int
	}{{"pooled", poolSize}, {"cold", 0}} {
		b.Run(server.name, func(b *testing.B) {
			s := harness.Start(b, harness.Options{Args: []string{"--pool", fmt.Sprint(server.pool)}})
			addImage(b, s)
			for _, template := range []string{"base", imageName} {
				for _, atOnce := range []int{1, 8} {
					b.Run(fmt.Sprintf("%s/at-once=%d", template, atOnce), func(b *testing.B) {
						createAndRun(b, s, template, atOnce, server.pool > 0)
					})
				}
			}
		})
	}
}

// createAndRun makes b.N rounds of atOnce sandboxes each. Between rounds the
// pool fills again; that is not measured.
func createAndRun(b *testing.B, s *harness.Server, template string, atOnce int, pooled bool) {
	c := s.Client()
	var mu sync.Mutex
	var created, output []time.Duration
	before := cpuOfEnded(b, s.PID())
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		if pooled {
			waitForPool(b, s)
		}
		b.StartTimer()
		var round sync.WaitGroup
		for range atOnce {
			round.Go(func() {
				made, first := firstOutput(b, c, template)
				mu.Lock()
				defer mu.Unlock()
				created, output = append(created, made), append(output, first)
			})
		}
		round.Wait()
		b.StopTimer()
		killAll(b, s)
		b.StartTimer()
	}
	create := report(b, created, "create")
	first := report(b, output, "output")
	if !pooled { // a pool works ahead
		b.ReportMetric((cpuOfEnded(b, s.PID())-before).Seconds()*1000/float64(b.N*atOnce), "cpu-ms/sandbox")
	}
	if atOnce > 1 {
		return
	}
	aim := aimCold
	if pooled {
		aim = aimPooled
	}
	reportRatio(b, first, aim, "output/aim")
	reportRatio(b, create, cubeCreate, "create/CubeSandbox")
	reportRatio(b, create, e2bCreate, "create/E2B")
}

// stopwatch notes when the first output comes.
type stopwatch struct {
	bytes.Buffer
	start time.Time
	first time.Duration
}

func (s *stopwatch) Write(p []byte) (int, error) {
	if s.first == 0 {
		s.first = time.Since(s.start)
	}
	return s.Buffer.Write(p)
}

// firstOutput returns when the create was answered and when the output of a
// command arrived.
func firstOutput(b *testing.B, c *client.Client, template string) (created, output time.Duration) {
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	start := time.Now()
	made, err := c.CreateSandbox(ctx, api.NewSandbox{TemplateID: template})
	if err != nil {
		b.Error(err)
		return 0, 0
	}
	created = time.Since(start)
	stdout := stopwatch{start: start}
	exit, err := c.Open(made).Commands.Run(ctx, client.Command{Args: []string{"echo", "hello"}, Stdout: &stdout})
	if err != nil || exit.Code != 0 || stdout.String() != "hello\n" {
		b.Errorf("run: %v, exit %d, output %q", err, exit.Code, stdout.String())
	}
	return created, stdout.first
}

// report adds the median, which it returns, and the 99th percentile in
// milliseconds to a benchmark's line.
func report(b *testing.B, all []time.Duration, what string) (median float64) {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	at := func(share float64) float64 {
		return float64(all[int(share*float64(len(all)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), what+"-p50-ms")
	b.ReportMetric(at(0.99), what+"-p99-ms")
	return at(0.5)
}

// BenchmarkSustained measures creates per second, from two clients that kill
// each sandbox as soon as it has answered.
func BenchmarkSustained(b *testing.B) {
	s := harness.Start(b, harness.Options{Args: []string{"--pool", "4"}})
	c := s.Client()
	b.ResetTimer()
	b.SetParallelism(1)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
			made, err := c.CreateSandbox(ctx, api.NewSandbox{TemplateID: "base"})
			if err == nil {
				err = c.Kill(ctx, made.SandboxID)
			}
			cancel()
			if err != nil {
				b.Error(err)
			}
		}
	})
	rate := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "creates/s")
	reportRatio(b, rate, aimSustained, "creates/aim")
}

// BenchmarkSetNetwork measures an update of a live sandbox's policy, until it is
// confirmed.
func BenchmarkSetNetwork(b *testing.B) {
	s := harness.Start(b, harness.Options{})
	box := s.Create(b, api.NewSandbox{})
	for _, entries := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			update := api.NetworkUpdate{Network: api.Network{AllowOut: prefixes(entries), DenyOut: []string{"0.0.0.0/0"}}}
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				if err := s.Client().SetNetwork(b.Context(), box.ID, update); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			report(b, took, "confirmed")
		})
	}
}

// prefixes are distinct /32s that do not merge.
func prefixes(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("20.%d.%d.%d", i>>15, i>>7&255, i<<1&255)
	}
	return list
}
