package namespaces

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestLife(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	for name, root := range map[string]sandbox.Root{"directory": dirRoot(), "image": {Image: shared.image}} {
		t.Run(name, func(t *testing.T) {
			b, s := l.start(root, testLimits, "one", "two")
			if got := s.must(t, request{Op: "args"}); !strings.HasPrefix(got, "1castle[one two] [PATH=/usr/bin:/bin A=b") {
				t.Errorf("the guest runs as %s", got)
			}
			// What is written stays in the box.
			s.must(t, request{Op: "fill", Args: []string{"/tmp/file"}, N: 1})
			if points, err := below(l.root); err != nil || len(points) != 0 {
				t.Errorf("the host holds mounts of a running box: %q, %v", points, err)
			}
			if u, err := b.Usage(t.Context()); err != nil || u.MemoryBytes <= 0 || u.CPUTime <= 0 {
				t.Errorf("usage %+v, %v", u, err)
			}
			if err := b.Start(t.Context(), startSpec(root, testLimits)); err == nil {
				t.Error("started twice")
			}
			for range 2 {
				if err := b.Destroy(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if left := l.traces(b.ID()); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
			if exit, err := b.Wait(t.Context()); err != nil || exit.OOM || exit.At.IsZero() {
				t.Errorf("exit %+v, %v", exit, err)
			}
			if _, err := b.Usage(t.Context()); !errors.Is(err, sandbox.ErrGone) {
				t.Errorf("usage of what is gone: %v", err)
			}
			if err := b.Start(t.Context(), startSpec(root, testLimits)); !errors.Is(err, sandbox.ErrGone) {
				t.Errorf("start of what is gone: %v", err)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(shared.root, "tmp/file")); !os.IsNotExist(err) {
		t.Errorf("a box wrote to its template: %v", err)
	}
}

// TestProgramsFromImage: files of an image can be executed.
func TestProgramsFromImage(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	_, s := l.start(sandbox.Root{Image: shared.image}, testLimits)
	r, err := s.ask(request{Op: "run", Args: []string{"/bin/self", "fail"}})
	if err != nil || r.Err != "exit status 3" || r.Out != "the guest's last words\n" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestReservedOnly(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	s := newSlot(t)
	b, err := l.Prepare(t.Context(), sandbox.NewBoxID(), s.path(), testLimits)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := b.Usage(t.Context()); err != nil || u != (sandbox.Usage{}) {
		t.Errorf("usage %+v, %v", u, err)
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Wait(short); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	if _, err := l.Prepare(t.Context(), b.ID(), s.path(), testLimits); err == nil {
		t.Error("the same id was prepared twice")
	}
	ended := make(chan error, 1)
	go func() {
		_, err := b.Wait(t.Context())
		ended <- err
	}()
	if err := b.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("wait: %v", err)
	}
	if left := l.traces(b.ID()); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestGuestThatEnds(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	b, s := l.start(dirRoot(), testLimits)
	if _, err := s.ask(request{Op: "exit", N: 3}); err == nil {
		t.Error("the guest answered after its end")
	}
	exit, err := b.Wait(t.Context())
	if err != nil || exit.OOM || exit.Status != -1 || time.Since(exit.At) > time.Minute {
		t.Errorf("exit %+v, %v", exit, err)
	}
	failing, _ := l.prepareOnly()
	err = failing.Start(t.Context(), startSpec(dirRoot(), testLimits, "fail"))
	if err == nil {
		_, err = failing.Wait(t.Context())
	}
	if err != nil && !strings.Contains(err.Error(), "last words") {
		t.Errorf("start: %v", err)
	}
	if err == nil && !strings.Contains(l.log.String(), "last words") {
		t.Errorf("nobody knows why the guest failed: %s", l.log)
	}
}

func (l *lab) prepareOnly() (sandbox.Box, *slot) {
	l.t.Helper()
	s := newSlot(l.t)
	b, err := l.Prepare(l.t.Context(), sandbox.NewBoxID(), s.path(), testLimits)
	if err != nil {
		l.t.Fatal(err)
	}
	return b, s
}

func TestStartRefuses(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	noGuest := t.TempDir()
	notAnImage := filepath.Join(t.TempDir(), "junk.erofs")
	if err := os.WriteFile(notAnImage, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]func(*sandbox.StartSpec){
		"no root":           func(s *sandbox.StartSpec) { s.Root = sandbox.Root{} },
		"two roots":         func(s *sandbox.StartSpec) { s.Root.Image = shared.image },
		"relative root":     func(s *sandbox.StartSpec) { s.Root.Dir = "root" },
		"missing root":      func(s *sandbox.StartSpec) { s.Root.Dir = "/nonexistent" },
		"missing image":     func(s *sandbox.StartSpec) { s.Root = sandbox.Root{Image: "/nonexistent.erofs"} },
		"not an image":      func(s *sandbox.StartSpec) { s.Root = sandbox.Root{Image: notAnImage} },
		"no guest":          func(s *sandbox.StartSpec) { s.Guest.Dir = "" },
		"guest not there":   func(s *sandbox.StartSpec) { s.Guest.Dir = noGuest },
		"negative limit":    func(s *sandbox.StartSpec) { s.Limits.DiskMB = -1 },
		"long host name":    func(s *sandbox.StartSpec) { s.Hostname = strings.Repeat("h", 65) },
		"unclean directory": func(s *sandbox.StartSpec) { s.Guest.Dir = shared.guest + "/../guest" },
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			b, _ := l.prepareOnly()
			spec := startSpec(dirRoot(), testLimits)
			spoil(&spec)
			if err := b.Start(t.Context(), spec); err == nil {
				t.Error("accepted")
			}
			if err := b.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := l.traces(b.ID()); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
	for name, prepare := range map[string]func() error{
		"bad id":        func() error { _, err := l.Prepare(t.Context(), "../x", "/proc/self/ns/net", testLimits); return err },
		"no namespace":  func() error { _, err := l.Prepare(t.Context(), "a", "/nonexistent", testLimits); return err },
		"other kind":    func() error { _, err := l.Prepare(t.Context(), "a", "/proc/self/ns/mnt", testLimits); return err },
		"ordinary file": func() error { _, err := l.Prepare(t.Context(), "a", notAnImage, testLimits); return err },
		"negative limit": func() error {
			_, err := l.Prepare(t.Context(), "a", "/proc/self/ns/net", sandbox.Limits{CPUs: -1})
			return err
		},
	} {
		if err := prepare(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			s := newSlot(t)
			b, err := l.Prepare(t.Context(), sandbox.NewBoxID(), s.path(), testLimits)
			if err == nil {
				err = b.Start(t.Context(), startSpec(dirRoot(), testLimits, fmt.Sprint("n", i)))
			}
			if err != nil {
				t.Error(err)
				return
			}
			if r, err := s.ask(request{Op: "args"}); err != nil || !strings.Contains(r.Out, fmt.Sprint("n", i)) {
				t.Errorf("box %d answers %+v, %v", i, r, err)
			}
			if err := b.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestInterruptedStart: a caller that gives up leaves nothing once the box is
// destroyed.
func TestInterruptedStart(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 15 * time.Millisecond, 30 * time.Millisecond} {
		b, _ := l.prepareOnly()
		ctx, cancel := context.WithTimeout(t.Context(), after)
		err := b.Start(ctx, startSpec(dirRoot(), testLimits))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", after, err)
		}
		if err := b.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := l.traces(b.ID()); len(left) != 0 {
			t.Errorf("after %v left: %q", after, left)
		}
	}
}

func TestLoopDevice(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	target := t.TempDir()
	err := withLoop(shared.image, func(device string) error {
		return unix.Mount(device, target, "erofs", unix.MS_RDONLY, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(target, "bin/self")); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatal(err)
	}
}
