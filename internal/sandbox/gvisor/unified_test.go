package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
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

// TestUnified covers what of cgroup v2 needs no controller: a machine that has
// them bound to v1 offers none. Limits are gVisor's code.
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
	return errors.Join(checkEnter(g), g.remove(ctx), checkGone(g))
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
