package namespaces

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// TestAdoption: a new server finds the boxes of the last one, running.
func TestAdoption(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	first, s := l.start(dirRoot(), testLimits)
	reserved, _ := l.prepareOnly()
	dead, deadSlot := l.start(dirRoot(), testLimits)
	_, _ = deadSlot.ask(request{Op: "exit"}) // its connection breaks
	if _, err := dead.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.restart()

	ids, err := l.List(t.Context())
	if err != nil || len(ids) != 3 {
		t.Errorf("listed %q, %v", ids, err)
	}
	for _, gone := range []string{reserved.ID(), dead.ID(), "none", "../x"} {
		if _, err := l.Load(t.Context(), gone); !errors.Is(err, sandbox.ErrGone) {
			t.Errorf("load %s: %v", gone, err)
		}
	}
	for _, id := range []string{reserved.ID(), dead.ID(), "none", "../x"} {
		if err := l.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	b, err := l.Load(t.Context(), first.ID())
	if err != nil {
		t.Fatal(err)
	}
	s.must(t, request{Op: "args"})
	if again, err := l.Load(t.Context(), first.ID()); err != nil || again != b {
		t.Errorf("loaded twice: %v", err)
	}
	if err := b.Start(t.Context(), startSpec(dirRoot(), testLimits)); err == nil {
		t.Error("an adopted box was started again")
	}
	if u, err := b.Usage(t.Context()); err != nil || u.MemoryBytes == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	_, _ = s.ask(request{Op: "exit"})
	if _, err := b.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ids, err := l.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("listed %q, %v", ids, err)
	}
}

// TestRemoveWithoutRecord: a server may be killed at any moment; what it had
// made until then is found by its id alone.
func TestRemoveWithoutRecord(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	running, _ := l.start(dirRoot(), testLimits)
	// Killed between the container's start and the record.
	if err := os.Remove(filepath.Join(l.boxDir(running.ID()), recordName)); err != nil {
		t.Fatal(err)
	}
	// Killed while the root was being made.
	mounting := sandbox.NewBoxID()
	files := filepath.Join(l.boxDir(mounting), "mounts")
	if err := os.MkdirAll(files, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := mountRoot(files, dirRoot(), 16); err != nil {
		t.Fatal(err)
	}
	// Its directory was lost, its cgroup and processes were not.
	grouped, _ := l.start(dirRoot(), testLimits)
	pid := grouped.(*box).guest.PID
	for _, dir := range []string{l.boxDir(grouped.ID()), filepath.Join(grouped.(*box).engine.state, grouped.ID())} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	l.restart()
	ids, err := l.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{running.ID(), mounting, grouped.ID()} {
		if !slices.Contains(ids, id) {
			t.Errorf("%s is not listed in %q", id, ids)
		}
		if err := l.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
		if left := l.traces(id); len(left) != 0 {
			t.Errorf("left of %s: %q", id, left)
		}
	}
	if _, err := startTime(pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("process %d is still there: %v", pid, err)
	}
	if _, err := os.Stat(filepath.Join(shared.root, "usr/bin/sh")); err != nil {
		t.Fatalf("the template was damaged: %v", err)
	}
}

// TestCloseLeavesBoxesRunning: the server may stop, its boxes stay.
func TestCloseLeavesBoxesRunning(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	b, s := l.start(dirRoot(), testLimits)
	waited := make(chan error, 1)
	go func() {
		_, err := b.Wait(t.Context())
		waited <- err
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err == nil {
		t.Error("Wait says that a running box has ended")
	}
	s.must(t, request{Op: "args"})
	if _, err := l.Prepare(t.Context(), sandbox.NewBoxID(), s.path(), testLimits); err == nil {
		t.Error("a closed runtime prepares boxes")
	}
	if err := b.Destroy(t.Context()); err == nil {
		t.Error("a closed runtime destroys boxes")
	}
	l.Runtime = l.open()
	if _, err := l.Load(t.Context(), b.ID()); err != nil {
		t.Error(err)
	}
}
