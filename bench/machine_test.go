package bench

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// sentry is the first argument of every box's kernel process.
const sentry = "runsc-sandbox"

// boxes counts the booted boxes on this machine.
func boxes(b *testing.B) int {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.Fatal(err)
	}
	count := 0
	for _, file := range files {
		// A process that has ended in between has no command line.
		line, err := os.ReadFile(file)
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
	s.Wait("the pool to fill", func() bool { return boxes(b) >= 2*poolSize })
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
// memory: the change of MemAvailable over a batch, by kind of template.
func BenchmarkMemory(b *testing.B) {
	const batch = 20
	s := harness.Start(b, harness.Options{Args: []string{"--pool", "0"}})
	addImage(b, s)
	for _, template := range []string{"base", imageName} {
		b.Run(template, func(b *testing.B) {
			s.Create(b, api.NewSandbox{TemplateID: template}) // what all share
			var grown int64
			for b.Loop() {
				before := available(b)
				for range batch {
					s.Create(b, api.NewSandbox{TemplateID: template})
				}
				grown += before - available(b)
				killAll(b, s)
			}
			b.ReportMetric(float64(grown)/float64(b.N)/batch/(1<<20), "MiB/sandbox")
		})
	}
}

// available reads MemAvailable in bytes.
func available(b *testing.B) int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no MemAvailable in /proc/meminfo")
	return 0
}
