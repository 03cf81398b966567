package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// sentry is the first argument of every box's kernel process.
const sentry = "runsc-sandbox"

// boxes counts the server's booted boxes.
func boxes(b *testing.B, s *harness.Server) int {
	count := 0
	for _, pid := range descendants(b, s.PID()) {
		// A process that has ended in between has no command line.
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.HasPrefix(line, []byte(sentry+"\x00")) {
			count++
		}
	}
	return count
}

// waitForPool waits until both kinds of pooled boxes are ready.
func waitForPool(b *testing.B, s *harness.Server) {
	// A box is counted while it still boots; one more create's time lets the
	// last of them finish.
	s.Wait("the pool to fill", func() bool { return boxes(b, s) >= 2*poolSize })
	time.Sleep(200 * time.Millisecond)
}

func killAll(b *testing.B, s *harness.Server) {
	c := s.Client()
	for listed, err := range c.Sandboxes(b.Context(), client.Filter{}) {
		if err == nil {
			err = c.Kill(b.Context(), listed.SandboxID)
		}
		var refused *client.Error
		if err != nil && !(errors.As(err, &refused) && refused.Status == 404) {
			b.Error(err)
		}
	}
}

func addRequest(dir string) api.NewTemplate {
	return api.NewTemplate{Names: []string{imageName}, Dir: dir}
}

// BenchmarkMemory measures what one more idle sandbox takes of the machine's
// memory, by kind of template: by the proportional set sizes of all processes of
// sandboxes, and by the change of the machine's available memory, which is right
// only where nothing else runs.
func BenchmarkMemory(b *testing.B) {
	s := harness.Start(b, harness.Options{Args: []string{"--pool", "0"}})
	addImage(b, s)
	for _, template := range []struct {
		name string
		aim  float64
	}{{"base", aimBaseMiB}, {imageName, aimImageMiB}} {
		b.Run(template.name, func(b *testing.B) {
			var sum, grown int64
			for b.Loop() {
				more, less := batchMemory(b, s, template.name)
				sum, grown = sum+more, grown+less
			}
			each := func(bytes int64) float64 { return float64(bytes) / float64(b.N) / batch / (1 << 20) }
			b.ReportMetric(0, "ns/op") // says nothing
			b.ReportMetric(each(sum), "PSS-MiB/sandbox")
			b.ReportMetric(each(grown), "available-MiB/sandbox")
			reportRatio(b, each(sum), template.aim, "PSS/aim")
			reportRatio(b, each(sum), cubeMiB, "PSS/CubeSandbox")
		})
	}
}

// batch is how many sandboxes are measured together.
const batch = 20

// idleAfter is when a sandbox counts as idle.
const idleAfter = 4 * time.Second

// batchMemory returns by how much the set sizes grow, and the available memory
// shrinks, with a batch of sandboxes, after a first one, which pays for what all
// share.
func batchMemory(b *testing.B, s *harness.Server, template string) (pssGrown, availableLess int64) {
	s.Create(b, api.NewSandbox{TemplateID: template})
	time.Sleep(idleAfter)
	before, left := pss(b, descendants(b, s.PID())), available(b)
	for range batch {
		s.Create(b, api.NewSandbox{TemplateID: template})
	}
	time.Sleep(idleAfter)
	pssGrown, availableLess = pss(b, descendants(b, s.PID()))-before, left-available(b)
	killAll(b, s)
	return pssGrown, availableLess
}
