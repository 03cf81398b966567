package gvisor

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// TestParallel boots, starts, uses and destroys eight boxes at once, twice.
func TestParallel(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	for range 2 {
		var all sync.WaitGroup
		for i := range 8 {
			s := newSlot(t)
			root := l.image
			if i%2 == 1 {
				root = l.host
			}
			all.Go(func() {
				b, err := r.Prepare(t.Context(), sandbox.NewBoxID(), s.path(), testLimits)
				if err != nil {
					t.Error(err)
					return
				}
				if err := b.Start(t.Context(), l.startSpec(root, testLimits)); err != nil {
					t.Error(err)
				} else if got, err := s.ask(20*time.Second, request{Op: "hostname"}); err != nil || got.Out != "castle" {
					t.Errorf("%+v, %v", got, err)
				}
				if err := b.Destroy(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if left := traces(t, r); len(left) != parents(left) {
			t.Errorf("left behind: %q", left)
		}
	}
}

// parents counts the cgroups that all boxes share: they stay until Close.
func parents(traces []string) int {
	n := 0
	for _, trace := range traces {
		if strings.HasPrefix(trace, "/sys/fs/cgroup/") {
			n++
		}
	}
	return n
}

// TestNoLeaks destroys boxes in every state and looks for what this process
// still holds of them: open files and unreaped children.
func TestNoLeaks(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	round := func() {
		ctx := t.Context()
		prepared, _ := prepareBox(t, r, testLimits)
		started, _ := startBox(t, r, l.host, testLimits)
		dead, _ := startBox(t, r, l.host, testLimits)
		if err := dead.(*box).sentry.kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := dead.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		for _, b := range []sandbox.Box{prepared, started, dead, dead} {
			if err := b.Destroy(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	round() // opens what is opened once, like the runtime's poller
	before := openFiles(t)
	round()
	if after := openFiles(t); len(after) > len(before) {
		t.Errorf("%d files open, %d before:\n%q", len(after), len(before), after)
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("child %d is left (%v)", pid, err)
	}
}

// openFiles lists what this process has open, but for the slots of the tests.
func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(name, "net:") {
			names = append(names, name)
		}
	}
	return names
}

// TestGuestEnds: a box ends with its guest.
func TestGuestEnds(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	var log bytes.Buffer
	r.log = slog.New(slog.NewTextHandler(&log, nil))
	b, _ := startBox(t, r, l.image, testLimits, "fail")
	exit, err := b.Wait(t.Context())
	if err != nil || exit.Status != 3 || exit.OOM {
		t.Errorf("box ended with %+v, %v; want status 3", exit, err)
	}
	if _, err := b.Usage(t.Context()); !errors.Is(err, sandbox.ErrGone) {
		t.Errorf("usage of an ended box: %v", err)
	}
	if err := b.Destroy(t.Context()); err != nil { // ends the watchers, which log
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "the guest's last words") {
		t.Errorf("the log does not show what the guest said:\n%s", &log)
	}
}

// TestGoferEnds: a box whose files are gone ends too.
func TestGoferEnds(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	b, s := startBox(t, r, l.host, testLimits)
	s.must(t, request{Op: "ping"})
	if err := b.(*box).gofer.kill(); err != nil {
		t.Fatal(err)
	}
	if exit, err := b.Wait(t.Context()); err != nil || exit.OOM || exit.Status != 128+9 {
		t.Errorf("box ended with %+v, %v; want status 137", exit, err)
	}
}

// TestWaitIsPatient: Wait ends with its context, and the box does not.
func TestWaitIsPatient(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	b, s := startBox(t, r, l.image, testLimits)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: %v", err)
	}
	s.must(t, request{Op: "ping"})
}

// TestCancel gives up Prepare and Start at many moments. Nothing may stay: what
// newRuntime checks at the end.
func TestCancel(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	for i := range 12 {
		s := newSlot(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*6*time.Millisecond)
		b, err := r.Prepare(ctx, sandbox.NewBoxID(), s.path(), testLimits)
		if err == nil {
			err = b.Start(ctx, l.startSpec(l.host, testLimits))
			if err1 := b.Destroy(t.Context()); err1 != nil {
				t.Error(err1)
			}
		}
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %d ms: %v", i*6, err)
		}
	}
}

// TestLongRoot: an installation may be in a directory whose name exceeds a
// socket's address.
func TestLongRoot(t *testing.T) {
	l, r := newLab(t), openRuntime(t, filepath.Join(t.TempDir(), strings.Repeat("long/", 30)+"root"))
	_, s := startBox(t, r, l.host, testLimits)
	s.must(t, request{Op: "ping"})
}

// TestRefused: bad input gives an error that says which, and the box that was
// prepared stays usable.
func TestRefused(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	b, s := prepareBox(t, r, testLimits)
	change := func(f func(*sandbox.StartSpec)) sandbox.StartSpec {
		spec := l.startSpec(l.image, testLimits)
		f(&spec)
		return spec
	}
	for want, spec := range map[string]sandbox.StartSpec{
		"image or a directory":      change(func(s *sandbox.StartSpec) { s.Root = sandbox.Root{} }),
		`directory "/d"`:            change(func(s *sandbox.StartSpec) { s.Root.Dir = "/d" }),
		"guest image is missing":    change(func(s *sandbox.StartSpec) { s.Guest.Image = "" }),
		"longer than 64 bytes":      change(func(s *sandbox.StartSpec) { s.Hostname = strings.Repeat("h", 65) }),
		"limits of 1 MiB memory":    change(func(s *sandbox.StartSpec) { s.Limits.MemoryMB = 1 }),
		"512 MiB memory and 1 MiB":  change(func(s *sandbox.StartSpec) { s.Limits.DiskMB = 1 }),
		"processes is negative: -1": change(func(s *sandbox.StartSpec) { s.Limits.Processes = -1 }),
	} {
		if err := b.Start(t.Context(), spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("start: %v; want %q", err, want)
		}
	}
	if err := b.Start(t.Context(), l.startSpec(l.image, testLimits)); err != nil {
		t.Fatal(err)
	}
	s.must(t, request{Op: "ping"})
	if err := b.Start(t.Context(), l.startSpec(l.image, testLimits)); err == nil {
		t.Error("a box was started twice")
	}
	for want, f := range map[string]func() error{
		"lower case letters and digits": func() error { _, err := r.Prepare(t.Context(), "../x", s.path(), testLimits); return err },
		"exists":                        func() error { _, err := r.Prepare(t.Context(), b.ID(), s.path(), testLimits); return err },
		"cpus is negative":              func() error { _, err := r.Prepare(t.Context(), "b1", s.path(), sandbox.Limits{CPUs: -1}); return err },
		"the server's own":              func() error { _, err := r.Prepare(t.Context(), "b1", "/proc/self/ns/net", testLimits); return err },
		"/no/netns":                     func() error { _, err := r.Prepare(t.Context(), "b1", "/no/netns", testLimits); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("prepare: %v; want %q", err, want)
		}
	}
	s.must(t, request{Op: "ping"}) // refusing a second one did not touch it
}

// TestMissingFiles: a template whose files are gone fails and leaves nothing.
func TestMissingFiles(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	broken := filepath.Join(t.TempDir(), "broken.erofs")
	if err := os.WriteFile(broken, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, root := range map[string]sandbox.Root{
		"open /no/image": {Image: "/no/image"},
		`"/no/dir"`:      {Dir: "/no/dir"},
		"magic":          {Image: broken},
	} {
		b, _ := prepareBox(t, r, testLimits)
		err := b.Start(t.Context(), l.startSpec(root, testLimits))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("start: %v; want %s", err, want)
		}
		if err := b.Start(t.Context(), l.startSpec(l.image, testLimits)); err == nil {
			t.Error("a box was started whose start had failed")
		}
		if err := b.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
