package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cgroup"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

const (
	// memoryHeadroom is what a box's cgroup may use beyond the sandbox's own
	// memory and disk: the sentry, its page tables and the gofer.
	memoryHeadroom = 64 << 20
	// minHostTasks bounds the host threads of a box. It is a fuse only: when it
	// blows the whole box goes, so the limit that code inside meets is RLIMIT_NPROC.
	minHostTasks = 4096
	// cpuPeriod is the scheduler's accounting period in microseconds.
	cpuPeriod = 100_000
)

// group is the cgroup of one box, in every hierarchy of cgroup v1 or in the
// one of v2. A nil group limits nothing.
type group struct {
	path    string // below the mount points, "/moat-<instance>/<box>"
	cgroup  cgroup.Cgroup
	unified bool // cgroup v2
}

// findGroup returns the group at path, whether it exists or not.
func findGroup(path string) (*group, error) {
	cg, err := cgroup.NewFromPath(path, false)
	if err != nil {
		return nil, fmt.Errorf("find cgroup: %w", err)
	}
	return &group{path: path, cgroup: cg, unified: cgroup.IsOnlyV2()}, nil
}

// install makes the group, which must not exist, and sets its limits.
func (g *group) install(limits sandbox.Limits) error {
	dirs, err := g.dirs()
	if err != nil {
		return err
	}
	if len(dirs) > 0 {
		return fmt.Errorf("create cgroup %s: it exists already", g.path)
	}
	if err := g.cgroup.Install(g.resources(limits)); err != nil {
		return fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	return nil
}

// update changes all limits but those of memory and disk.
func (g *group) update(limits sandbox.Limits) error {
	if g == nil {
		return nil
	}
	limits.MemoryMB = 0
	if err := g.cgroup.Update(g.resources(limits)); err != nil {
		return fmt.Errorf("change limits of cgroup %s: %w", g.path, err)
	}
	return nil
}

// resources translates limits.
func (g *group) resources(limits sandbox.Limits) *specs.LinuxResources {
	quota, period := int64(-1), uint64(cpuPeriod)
	if limits.CPUs > 0 {
		quota = int64(limits.CPUs) * cpuPeriod
	}
	res := &specs.LinuxResources{
		CPU:  &specs.LinuxCPU{Quota: &quota, Period: &period},
		Pids: &specs.LinuxPids{Limit: max(minHostTasks, 4*int64(limits.Processes))},
	}
	if bytes := limits.HostMemory(); bytes > 0 {
		bytes += memoryHeadroom
		res.Memory = &specs.LinuxMemory{Limit: &bytes}
		if g.limitsSwap() {
			res.Memory.Swap = &bytes // both together, hence no swap
		}
	}
	if g.unified {
		res.Unified = map[string]string{"memory.oom.group": "1"} // a box dies whole
	}
	return res
}

// enter arranges that the process which the calling thread starts next, with
// attr, begins its life in the group. The caller calls leave afterwards and
// throws the thread away.
func (g *group) enter(attr *syscall.SysProcAttr) (leave func(), err error) {
	if g == nil {
		return func() {}, nil
	}
	if g.unified {
		dir, err := g.cgroup.CloneIntoCgroup()
		if err != nil {
			return nil, fmt.Errorf("open cgroup %s: %w", g.path, err)
		}
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
		return func() { dir.Close() }, nil
	}
	// In v1 a thread can enter alone, and its children begin where it is. The
	// server's memory stays accounted where the server is.
	dirs, err := g.dirs()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0); err != nil {
			return nil, fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return func() {}, nil
}

// remove kills what is left in the group and removes it.
func (g *group) remove(ctx context.Context) error {
	if g == nil {
		return nil
	}
	dirs, err := g.dirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := removeGroupDir(ctx, dir, g.path); err != nil {
			return err
		}
	}
	return nil
}

// removeGroupDir retries while processes that were killed still leave: neither
// version of cgroups has a way to wait for that which works for both.
func removeGroupDir(ctx context.Context, dir, path string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		for _, pid := range groupMembers(dir) {
			killMember(pid, path)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", dir, context.Cause(ctx))
		}
	}
}

// groupMembers lists the processes in one cgroup directory.
func groupMembers(dir string) []int {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killMember kills a process if it is in the group at path, whatever its number
// belonged to when it was listed.
func killMember(pid int, path string) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && strings.Contains(string(groups), ":"+path+"\n") {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // gone is fine
	}
}

// dirs lists the directories that exist of the group, one per hierarchy.
func (g *group) dirs() ([]string, error) {
	if g.unified {
		dir := g.cgroup.MakePath("")
		if _, err := os.Stat(dir); err != nil {
			return nil, nil
		}
		return []string{dir}, nil
	}
	mount := strings.TrimSuffix(g.cgroup.MakePath("memory"), "/memory"+g.path)
	dirs, err := filepath.Glob(mount + "/*" + g.path)
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	return dirs, nil
}

// read returns the content of a control file, without the newline at its end.
func (g *group) read(controller, file string) (string, error) {
	data, err := os.ReadFile(filepath.Join(g.cgroup.MakePath(controller), file))
	return strings.TrimSpace(string(data)), err
}

// limitsSwap reports whether there is swap space to keep a box from, and a way
// to do so. The file that says so in v2 exists only below the top.
func (g *group) limitsSwap() bool {
	if g.unified {
		swaps, err := os.ReadFile("/proc/swaps")
		return err == nil && strings.Count(string(swaps), "\n") > 1
	}
	top := strings.TrimSuffix(g.cgroup.MakePath("memory"), g.path)
	_, err := os.Stat(filepath.Join(top, "memory.memsw.limit_in_bytes"))
	return err == nil
}

// oomKilled reports whether the memory limit has killed anything in the group.
func (g *group) oomKilled() bool {
	if g == nil {
		return false
	}
	file := "memory.oom_control"
	if g.unified {
		file = "memory.events"
	}
	text, err := g.read("memory", file)
	if err != nil {
		return false
	}
	return counter(text, "oom_kill") > 0
}

// counter finds "name value" among the lines of a control file; 0 if absent.
func counter(text, name string) int64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// usage reads what the group has consumed so far.
func (g *group) usage() (sandbox.Usage, error) {
	file := "memory.usage_in_bytes"
	if g.unified {
		file = "memory.current"
	}
	text, err := g.read("memory", file)
	if err != nil {
		return sandbox.Usage{}, fmt.Errorf("read memory of cgroup %s: %w", g.path, err)
	}
	memory, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return sandbox.Usage{}, fmt.Errorf("read memory of cgroup %s: %w", g.path, err)
	}
	cpu, err := g.cgroup.CPUUsage()
	if err != nil {
		return sandbox.Usage{}, fmt.Errorf("read CPU time of cgroup %s: %w", g.path, err)
	}
	return sandbox.Usage{CPUTime: time.Duration(cpu), MemoryBytes: memory}, nil
}
