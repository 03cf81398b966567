package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// unifiedEnv makes the test binary check cgroup v2, in a mount namespace where
// it is the only one there is.
const unifiedEnv = "MOAT_TEST_GVISOR_UNIFIED"

// TestUnified covers what of cgroup v2 needs no controller, because a machine
// that has them bound to v1 offers none, and with files in the place of a
// group's what is written to and read from those. That the kernel then holds
// the limits is what Probe asks.
func TestUnified(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), unifiedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func checkUnified() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	parent := fmt.Sprintf("/moat-test-v2-%d", os.Getpid())
	g, err := findGroup(parent + "/b1")
	if err != nil {
		return err
	}
	if !g.unified {
		return errors.New("cgroup v2 was not recognized")
	}
	defer os.Remove("/sys/fs/cgroup" + parent)
	if err := g.install(sandbox.Limits{CPUs: 1, MemoryMB: 64}); err == nil {
		return errors.New("limits were set without controllers")
	}
	if dirs, err := g.dirs(); err != nil || len(dirs) != 0 {
		return fmt.Errorf("a group that could not be made left %q (%v)", dirs, err)
	}
	if err := os.MkdirAll("/sys/fs/cgroup"+g.path, 0o755); err != nil {
		return err
	}
	return errors.Join(checkEnter(g), g.remove(ctx), checkGone(g), checkFiles(fmt.Sprintf("test-v2-%d", os.Getpid())))
}

// files are put, and looked at, in a directory.
type files map[string]string

func (f files) put(dir string) (err error) {
	for name, text := range f {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return err
}

func (f files) check(dir string) (err error) {
	for name, want := range f {
		if got, e := os.ReadFile(filepath.Join(dir, name)); e != nil || string(got) != want {
			err = errors.Join(err, fmt.Errorf("%s has %q (%v), want %q", name, got, e, want))
		}
	}
	return err
}

// checkFiles gives this machine the files of one with all controllers and with
// swap, in this mount namespace, and a box a group that is a plain directory.
func checkFiles(instance string) error {
	r := &Runtime{instance: instance}
	top := "/sys/fs/cgroup" + r.groupPath("")
	if err := unix.Mount("none", top, "tmpfs", 0, ""); err != nil {
		return err
	}
	defer unix.Unmount(top, unix.MNT_DETACH) // the group itself is there beyond this namespace, and is removed
	if err := (files{"controllers": "cpuset cpu io memory hugetlb pids\n", "swaps": "Filename\n/swap file 1 0 -2\n"}).put(top); err != nil {
		return err
	}
	for name, over := range map[string]string{"controllers": "/sys/fs/cgroup/cgroup.controllers", "swaps": "/proc/swaps"} {
		if err := unix.Mount(filepath.Join(top, name), over, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	g, err := findGroup(r.groupPath("b2"))
	if err != nil {
		return err
	}
	dir := filepath.Join(top, "b2")
	if err := errors.Join(os.Mkdir(dir, 0o700), files{
		"cpu.max": "", "cpu.stat": "usage_usec 1500\nuser_usec 1000\n", "pids.max": "", "memory.max": "", "memory.swap.max": "",
		"memory.oom.group": "", "memory.current": "1048576\n", "memory.events": "oom 3\noom_kill 0\noom_group_kill 1\n",
	}.put(dir)); err != nil {
		return err
	}
	// What install does with a directory that it has made.
	if err := g.cgroup.Update(g.resources(sandbox.Limits{CPUs: 2, MemoryMB: 64, DiskMB: 16, Processes: 2000})); err != nil {
		return err
	}
	memory := strconv.Itoa((64 + 16 + 64) << 20)
	err = files{"cpu.max": "200000 100000", "pids.max": "8000", "memory.max": memory, "memory.swap.max": "0", "memory.oom.group": "1"}.check(dir)
	if err := errors.Join(err, g.update(sandbox.Limits{MemoryMB: 1, Processes: 1})); err != nil {
		return err
	}
	err = files{"cpu.max": "max 100000", "pids.max": "4096", "memory.max": memory, "memory.swap.max": "0"}.check(dir)
	if names, e := r.groupNames(); e != nil || !slices.Equal(names, []string{"b2"}) {
		err = errors.Join(err, fmt.Errorf("the groups are %q (%v)", names, e))
	}
	if used, e := g.usage(); e != nil || used != (sandbox.Usage{CPUTime: 1500 * time.Microsecond, MemoryBytes: 1 << 20}) {
		err = errors.Join(err, fmt.Errorf("used is %+v (%v)", used, e))
	}
	if g.oomKilled() {
		err = errors.Join(err, errors.New("a group in which nothing was killed counts as killed"))
	}
	err = errors.Join(err, files{"memory.events": "oom 3\noom_kill 2\noom_group_kill 1\n"}.put(dir))
	if !g.oomKilled() {
		err = errors.Join(err, errors.New("that the memory limit killed is not seen"))
	}
	return err
}

// checkEnter starts a process in the group; g.remove has to end it.
func checkEnter(g *group) error {
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if err := onThrowawayThread(func() error {
		leave, err := g.enter(cmd.SysProcAttr)
		if err != nil {
			return err
		}
		defer leave()
		return cmd.Start()
	}); err != nil {
		return err
	}
	go cmd.Wait() // reaps it
	where, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil {
		return err
	}
	if !strings.Contains(string(where), "0::"+g.path+"\n") {
		return fmt.Errorf("the process is in %s", where)
	}
	return nil
}

func checkGone(g *group) error {
	if dirs, err := g.dirs(); err != nil || len(dirs) != 0 {
		return fmt.Errorf("left behind: %q (%v)", dirs, err)
	}
	return nil
}
