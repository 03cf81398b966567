package namespaces

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// capabilities are what root inside keeps: enough for packages, users and
// sudo. Not among them are NET_ADMIN and NET_RAW, with which the kernel's own
// network devices could be changed or spoken through, and MKNOD.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// maskedPaths tell of the host or reach into it.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/bpf", "/sys/kernel/debug", "/sys/kernel/security", "/sys/kernel/tracing",
}

// readonlyPaths may be looked at and not changed.
var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"}

// cpuPeriod is the interval over which CPU time is counted, in microseconds.
const cpuPeriod = 100_000

// maxOpenFiles is the most open files of a process inside, if the server may
// have as many.
const maxOpenFiles = 1 << 20

// containerSpec describes the container of a box for its engine.
func containerSpec(s sandbox.StartSpec, root, netns, cgroup string) *specs.Spec {
	return &specs.Spec{
		Version:  "1.0.2", // what runc 1.1 and crun 1.8 know
		Root:     &specs.Root{Path: root},
		Hostname: s.Hostname,
		Mounts:   containerMounts(s.Guest.Dir),
		Process: &specs.Process{
			Args: append([]string{sandbox.GuestDir + "/guest"}, s.Guest.Args...),
			Env:  s.Guest.Env,
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: capabilities, Effective: capabilities, Permitted: capabilities,
			},
			Rlimits: fileLimits(),
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Resources:   resources(s.Limits),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: netns},
			},
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			Seccomp:       seccomp(),
		},
	}
}

func containerMounts(guest string) []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=64m"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: sandbox.GuestDir, Type: "bind", Source: guest, Options: []string{"bind", "ro", "nosuid", "nodev"}},
	}
}

// resources are the box's limits, all kept by cgroups.
func resources(l sandbox.Limits) *specs.LinuxResources {
	r := &specs.LinuxResources{
		// The engine adds the few devices that every container has.
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	if l.CPUs > 0 {
		quota, period := int64(l.CPUs)*cpuPeriod, uint64(cpuPeriod)
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if bytes := l.HostMemory(); bytes > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &bytes}
		if swapCounted() {
			r.Memory.Swap = &bytes // memory and swap together: no swap
		}
	}
	if l.Processes > 0 {
		limit := int64(l.Processes)
		r.Pids = &specs.LinuxPids{Limit: limit}
	}
	return r
}

// swapCounted reports whether the kernel can limit swap per cgroup. Version 2
// leaves out the file of a limit that it cannot keep, which engines allow for.
func swapCounted() bool {
	trees, err := hierarchies()
	if err != nil {
		return false
	}
	for _, tree := range trees {
		if !tree.controllers["memory"] {
			continue
		}
		_, err := os.Stat(filepath.Join(tree.point, "memory.memsw.limit_in_bytes"))
		return tree.unified || err == nil
	}
	return false
}

// fileLimits bounds open files by what this process itself may have: the
// engine is not allowed to raise it.
func fileLimits() []specs.POSIXRlimit {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return nil
	}
	n := min(own.Max, maxOpenFiles)
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: n, Hard: n}}
}

func writeSpec(bundle string, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode container: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		return fmt.Errorf("describe container: %w", err)
	}
	return nil
}

// checkStart refuses what cannot be started, before anything is touched.
func checkStart(s sandbox.StartSpec) error {
	if (s.Root.Image == "") == (s.Root.Dir == "") {
		return fmt.Errorf("root must be an image or a directory, got image %q and directory %q", s.Root.Image, s.Root.Dir)
	}
	if s.Guest.Dir == "" {
		return errors.New("guest directory is missing")
	}
	for _, path := range []string{s.Root.Image + s.Root.Dir, s.Guest.Dir} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return fmt.Errorf("path %q is not clean and absolute", path)
		}
	}
	if len(s.Hostname) > 64 {
		return fmt.Errorf("host name %q is longer than 64 bytes", s.Hostname)
	}
	return checkLimits(s.Limits)
}
