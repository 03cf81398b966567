package gvisor

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

var errNoGroups = errors.New("none on this machine")

func TestProbe(t *testing.T) {
	r := newRuntime(t)
	caps, err := r.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Machines that run the tests have cgroups.
	if want := (sandbox.Enforced{CPU: true, Memory: true, Disk: true, Processes: true}); !caps.Kernel || caps.Enforced != want || caps.Missing != nil {
		t.Errorf("capabilities %+v, want all", caps)
	}
}

// TestDiskLimit fills the writable layer from two directories: /tmp is part of it.
func TestDiskLimit(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	for name, root := range l.roots() {
		t.Run(name, func(t *testing.T) {
			_, s := startBox(t, r, root, testLimits)
			if got := s.must(t, request{Op: "fill", Path: "/var/tmp/a", MB: 40}); got.N != 40 {
				t.Fatalf("wrote %d MiB, want 40", got.N)
			}
			got, err := s.ask(20*time.Second, request{Op: "fill", Path: "/tmp/b", MB: 40})
			if err != nil || !strings.Contains(got.Err, "no space left on device") || got.N < 20 || got.N > 24 {
				t.Errorf("filling a disk of 64 MiB that holds 40: %+v, %v", got, err)
			}
			s.must(t, request{Op: "ping"})
		})
	}
}

// TestFullDisk fills a disk larger than the memory: that is an error inside, not
// the end of the box.
func TestFullDisk(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	limits := testLimits
	limits.MemoryMB, limits.DiskMB = 96, 320
	_, s := startBox(t, r, l.image, limits)
	got, err := s.ask(20*time.Second, request{Op: "fill", Path: "/var/tmp/a", MB: 400})
	if err != nil || !strings.Contains(got.Err, "no space left on device") || got.N < 300 {
		t.Errorf("filling a disk of 320 MiB: %+v, %v", got, err)
	}
	s.must(t, request{Op: "eat", MB: 64})
}

func TestProcessLimit(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	limits := testLimits
	limits.Processes = 32
	_, s := startBox(t, r, l.image, limits)
	got, err := s.ask(30*time.Second, request{Op: "fork", N: 100})
	if err != nil || !strings.Contains(got.Err, "resource temporarily unavailable") || got.N >= 32 {
		t.Errorf("starting 100 processes of 32: %+v, %v", got, err)
	}
	s.must(t, request{Op: "ping"})
}

func TestMemoryLimit(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	limits := testLimits
	limits.MemoryMB = 96
	b, s := startBox(t, r, l.image, limits)
	answered := make(chan reply, 1)
	go func() {
		// No answer comes: the box ends without a word to its peers.
		if got, err := s.ask(5*time.Second, request{Op: "eat", MB: 400}); err == nil {
			answered <- got
		}
	}()
	exit, err := b.Wait(t.Context())
	if err != nil || !exit.OOM || time.Since(exit.At) > time.Minute {
		t.Errorf("box ended with %+v, %v; want OOM", exit, err)
	}
	select {
	case got := <-answered:
		t.Errorf("using 400 MiB of 96 gave %+v", got)
	default:
	}
}

// TestCPULimit changes the limit between Prepare and Start.
func TestCPULimit(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	b, s := prepareBox(t, r, testLimits)
	limits := testLimits
	limits.CPUs = 1
	if err := b.Start(t.Context(), l.startSpec(l.image, limits)); err != nil {
		t.Fatal(err)
	}
	s.must(t, request{Op: "ping"})
	before, err := b.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	s.must(t, request{Op: "spin", N: 1000, MB: 4})
	wall := time.Since(begin)
	after, err := b.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	used := after.CPUTime - before.CPUTime
	// One period's quota may be left over from before.
	if used > wall+200*time.Millisecond || used < 100*time.Millisecond {
		t.Errorf("four spinning threads used %v of CPU time in %v; the limit is one processor", used, wall)
	}
	if after.MemoryBytes < 1<<20 || after.MemoryBytes > 256<<20 {
		t.Errorf("an idle box uses %d bytes", after.MemoryBytes)
	}
}

// TestWithoutCgroups runs a box as on a machine that has none.
func TestWithoutCgroups(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	r.noGroups = errNoGroups
	b, s := startBox(t, r, l.image, testLimits)
	s.must(t, request{Op: "spin", N: 300, MB: 1})
	u, err := b.Usage(t.Context())
	if err != nil || u.CPUTime < 50*time.Millisecond || u.MemoryBytes < 1<<20 {
		t.Errorf("usage %+v, %v", u, err)
	}
	caps, err := r.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := (sandbox.Enforced{Disk: true, Processes: true}); caps.Enforced != want || len(caps.Missing) != 1 || !strings.Contains(caps.Missing[0], errNoGroups.Error()) {
		t.Errorf("capabilities %+v", caps)
	}
}
