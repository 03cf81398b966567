package gvisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// helperEnv makes the test binary run as another server; it holds a helperTask.
const helperEnv = "MOAT_TEST_GVISOR_HELPER"

// helperTask is what another server, to be killed, does: it starts a box for
// every root and prepares one more. With Churn it goes on to make boxes and
// destroy them in the last slot.
type helperTask struct {
	Root  string // of the runtime
	Slots []string
	Roots []sandbox.Root
	Guest sandbox.Guest
	Churn bool
}

// helper prints the ids of its boxes on a line when they run.
func helper(encoded string) error {
	var task helperTask
	if err := json.Unmarshal([]byte(encoded), &task); err != nil {
		return err
	}
	r, err := openTest(task.Root)
	if err != nil {
		return err
	}
	ctx := context.Background()
	var ids []string
	make := func(slot string) (sandbox.Box, error) {
		return r.Prepare(ctx, sandbox.NewBoxID(), slot, testLimits)
	}
	l := &lab{guest: task.Guest}
	for i, root := range task.Roots {
		b, err := make(task.Slots[i])
		if err != nil {
			return err
		}
		if err := b.Start(ctx, l.startSpec(root, testLimits)); err != nil {
			return err
		}
		ids = append(ids, b.ID())
	}
	last := task.Slots[len(task.Slots)-1]
	if !task.Churn {
		b, err := make(last)
		if err != nil {
			return err
		}
		ids = append(ids, b.ID())
	}
	fmt.Println(strings.Join(ids, " "))
	for task.Churn {
		b, err := make(last)
		if err != nil {
			return err
		}
		if err := b.Start(ctx, l.startSpec(task.Roots[0], testLimits)); err != nil {
			return err
		}
		if err := b.Destroy(ctx); err != nil {
			return err
		}
	}
	select {}
}

// startHelper runs a task in another process and returns the ids it printed.
func startHelper(t *testing.T, task helperTask) (*exec.Cmd, []string) {
	t.Helper()
	encoded, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+string(encoded))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("helper: %v, %v", err, cmd.Wait())
	}
	return cmd, strings.Fields(line)
}

// kill9 ends a helper as an out of memory killer or an operator would.
func kill9(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
}

// outerPath is the slot's namespace as seen by another process.
func (s *slot) outerPath() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.box.Fd()) }

func TestAdopt(t *testing.T) {
	l := newLab(t)
	root := t.TempDir()
	slots := []*slot{newSlot(t), newSlot(t), newSlot(t)}
	task := helperTask{Root: root, Guest: l.guest, Roots: []sandbox.Root{l.image, l.host}}
	for _, s := range slots {
		task.Slots = append(task.Slots, s.outerPath())
	}
	cmd, ids := startHelper(t, task)
	kill9(t, cmd)

	r := openRuntime(t, root)
	listed, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Sorted(slices.Values(ids)); !slices.Equal(listed, want) {
		t.Errorf("listed %q, want %q", listed, want)
	}
	if _, err := r.Prepare(t.Context(), ids[0], slots[0].path(), testLimits); err == nil {
		t.Error("an id was given to a second box")
	}
	for i := range 2 {
		adoptOne(t, r, ids[i], slots[i])
	}
	// One that is only prepared can be loaded, not started, and removed.
	b, err := r.Load(t.Context(), ids[2])
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context(), l.startSpec(l.image, testLimits)); err == nil {
		t.Error("a box was started that an earlier server had prepared")
	}
	if err := r.Remove(t.Context(), ids[2]); err != nil {
		t.Error(err)
	}
	if _, err := r.Load(t.Context(), ids[2]); !errors.Is(err, sandbox.ErrGone) {
		t.Errorf("load of a removed box: %v", err)
	}
}

// adoptOne takes over a running box and ends it.
func adoptOne(t *testing.T, r *Runtime, id string, s *slot) {
	t.Helper()
	b, err := r.Load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Load(t.Context(), id); err != nil || again != b {
		t.Errorf("loading again gave %v, %v", again, err)
	}
	s.must(t, request{Op: "ping"})
	if u, err := b.Usage(t.Context()); err != nil || u.MemoryBytes == 0 || u.CPUTime == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if _, err := s.ask(5*time.Second, request{Op: "exit", N: 7}); err == nil {
		t.Error("the guest answered after its end")
	}
	if exit, err := b.Wait(t.Context()); err != nil || exit.Status != 7 || exit.OOM {
		t.Errorf("box ended with %+v, %v; want status 7", exit, err)
	}
	if err := b.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Destroy(t.Context()); err != nil {
		t.Errorf("second time: %v", err)
	}
}

// TestCloseKeepsBoxes: a server that ends in order leaves its boxes running.
func TestCloseKeepsBoxes(t *testing.T) {
	l, s, root := newLab(t), newSlot(t), t.TempDir()
	first, err := openTest(root)
	if err != nil {
		t.Fatal(err)
	}
	b, err := first.Prepare(t.Context(), sandbox.NewBoxID(), s.path(), testLimits)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context(), l.startSpec(l.host, testLimits)); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Wait(t.Context()); err == nil {
		t.Error("a closed runtime says that a box has ended")
	}
	if err := b.Destroy(t.Context()); err == nil {
		t.Error("a closed runtime destroys boxes")
	}
	if _, err := first.Prepare(t.Context(), "b1", s.path(), testLimits); err == nil {
		t.Error("a closed runtime prepares boxes")
	}
	second := openRuntime(t, root)
	again, err := second.Load(t.Context(), b.ID())
	if err != nil {
		t.Fatal(err)
	}
	s.must(t, request{Op: "ping"})
	if err := again.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestInterrupted kills a server while it makes and destroys boxes, at many
// moments; the next one finds and removes everything.
func TestInterrupted(t *testing.T) {
	l, root, s := newLab(t), t.TempDir(), newSlot(t)
	for i := range 10 {
		task := helperTask{
			Root: root, Guest: l.guest, Churn: true,
			Roots: []sandbox.Root{l.host},
			Slots: []string{newSlot(t).outerPath(), s.outerPath()},
		}
		cmd, _ := startHelper(t, task)
		// The moment is arbitrary: there is no event to wait for.
		time.Sleep(time.Duration(i) * 17 * time.Millisecond)
		kill9(t, cmd)
		r, err := openTest(root)
		if err != nil {
			t.Fatal(err)
		}
		removeAll(t, r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := traces(t, r); left != nil {
			t.Fatalf("round %d left behind: %q", i, left)
		}
	}
}

func removeAll(t *testing.T, r *Runtime) {
	t.Helper()
	ids, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) == 0 {
		t.Error("nothing was found")
	}
	for _, id := range ids {
		if err := r.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// TestRemoveNothing: what does not exist is no error, and no reason to touch
// anything else.
func TestRemoveNothing(t *testing.T) {
	r := newRuntime(t)
	for _, id := range []string{"b1", "", "..", "../pause.erofs", "*"} {
		if err := r.Remove(t.Context(), id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
		if _, err := r.Load(t.Context(), id); !errors.Is(err, sandbox.ErrGone) {
			t.Errorf("load %q: %v", id, err)
		}
	}
	if _, err := os.Stat(filepath.Join(r.root, "pause.erofs")); err != nil {
		t.Error(err)
	}
}

func TestConfigRefused(t *testing.T) {
	good := testConfig(t.TempDir())
	for want, change := range map[string]func(*Config){
		`root "relative"`: func(c *Config) { c.Root = "relative" },
		`root "/a//b"`:    func(c *Config) { c.Root = "/a//b" },
		`instance "A/b"`:  func(c *Config) { c.Instance = "A/b" },
		"logger":          func(c *Config) { c.Logger = nil },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}
