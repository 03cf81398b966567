package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// probeLimits are asked for and read back.
var probeLimits = sandbox.Limits{CPUs: 1, MemoryMB: 128, DiskMB: 16, Processes: 64}

// Probe implements sandbox.Runtime: it boots a box in a network namespace of
// its own, runs something in it and reads its limits back.
func (r *Runtime) Probe(ctx context.Context) (sandbox.Caps, error) {
	caps := sandbox.Caps{
		Kernel:    true,
		Isolation: "gVisor: every sandbox has a kernel of its own in user space, in a process without privileges",
		// The sentry itself enforces these two.
		Enforced: sandbox.Enforced{Disk: true, Processes: true},
	}
	if err := r.probe(ctx, &caps); err != nil {
		return sandbox.Caps{}, fmt.Errorf("probe gvisor: %w", err)
	}
	return caps, nil
}

func (r *Runtime) probe(ctx context.Context, caps *sandbox.Caps) (err error) {
	netns, err := newNetNS()
	if err != nil {
		return err
	}
	defer netns.Close()
	made, err := r.Prepare(ctx, sandbox.NewBoxID(), fmt.Sprintf("/proc/self/fd/%d", netns.Fd()), probeLimits)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, made.Destroy(context.WithoutCancel(ctx))) }()
	if err := made.Start(ctx, sandbox.StartSpec{
		Hostname: "probe",
		Root:     sandbox.Root{Image: r.pauseImage()},
		Guest:    sandbox.Guest{Image: r.pauseImage()},
		Limits:   probeLimits,
	}); err != nil {
		return err
	}
	if _, err := made.Usage(ctx); err != nil {
		return err
	}
	if r.noGroups != nil {
		caps.Missing = append(caps.Missing, fmt.Sprintf("cgroups for CPU and memory limits: %v", r.noGroups))
		return nil
	}
	b := made.(*box)
	caps.Enforced.Memory, caps.Enforced.CPU = b.group.holds(b.sentry.PID, probeLimits)
	if !caps.Enforced.Memory {
		caps.Missing = append(caps.Missing, "a memory limit that takes effect: the cgroup does not hold it")
	}
	if !caps.Enforced.CPU {
		caps.Missing = append(caps.Missing, "a CPU limit that takes effect: the cgroup does not hold it")
	}
	return nil
}

// holds reads back whether the group contains the process and bounds its
// memory and CPU time as asked.
func (g *group) holds(pid int, limits sandbox.Limits) (memory, cpu bool) {
	wantMemory := strconv.FormatInt(limits.HostMemory()+memoryHeadroom, 10)
	wantQuota := strconv.Itoa(limits.CPUs * cpuPeriod)
	memoryFile, cpuFile := "memory.limit_in_bytes", "cpu.cfs_quota_us"
	if g.unified {
		memoryFile, cpuFile = "memory.max", "cpu.max"
		wantQuota += " " + strconv.Itoa(cpuPeriod)
	}
	is := func(controller, file, want string) bool {
		text, err := g.read(controller, file)
		if err != nil || text != want {
			return false
		}
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(groups)) {
			_, rest, _ := strings.Cut(line, ":")
			controllers, path, _ := strings.Cut(strings.TrimSpace(rest), ":")
			if path == g.path && (g.unified || strings.Contains(","+controllers+",", ","+controller+",")) {
				return true
			}
		}
		return false
	}
	return is("memory", memoryFile, wantMemory), is("cpu", cpuFile, wantQuota)
}
