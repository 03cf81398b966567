package namespaces

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// probeLimits are asked for and read back.
var probeLimits = sandbox.Limits{CPUs: 1, MemoryMB: 64, DiskMB: 4, Processes: 32}

// probePattern names the directories of probes below the root.
const probePattern = "probe-*"

// Probe implements sandbox.Runtime: it runs a container in a network namespace
// of its own and reads back what holds it.
func (r *Runtime) Probe(ctx context.Context) (sandbox.Caps, error) {
	r.choice.Lock()
	defer r.choice.Unlock()
	r.engine = nil
	caps, err := r.search(ctx)
	if err != nil {
		return sandbox.Caps{}, fmt.Errorf("probe namespaces: %w", err)
	}
	return caps, nil
}

// choose returns the engine that works here.
func (r *Runtime) choose(ctx context.Context) (*engine, error) {
	r.choice.Lock()
	defer r.choice.Unlock()
	if r.engine == nil {
		if _, err := r.search(ctx); err != nil {
			return nil, err
		}
	}
	return r.engine, nil
}

// search tries the engines in turn. r.choice must be held.
func (r *Runtime) search(ctx context.Context) (sandbox.Caps, error) {
	var failed []error
	for _, name := range engineNames {
		e, err := r.findEngine(name)
		if err != nil {
			continue
		}
		caps, err := r.try(ctx, e)
		if err == nil {
			r.engine = e
			return caps, nil
		}
		failed = append(failed, fmt.Errorf("%s does not work here: %w", name, err))
	}
	if len(failed) == 0 {
		return sandbox.Caps{}, errNoEngine
	}
	return sandbox.Caps{}, errors.Join(failed...)
}

// try runs a container that does nothing.
func (r *Runtime) try(ctx context.Context, e *engine) (caps sandbox.Caps, err error) {
	dir, err := os.MkdirTemp(r.root, probePattern)
	if err != nil {
		return caps, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "root"), 0o755), os.Mkdir(filepath.Join(dir, "guest"), 0o755),
		os.WriteFile(filepath.Join(dir, "guest", "guest"), sleeper(), 0o755)); err != nil {
		return caps, err
	}
	netns, err := newNetNS()
	if err != nil {
		return caps, err
	}
	b := r.newBox(sandbox.NewBoxID(), e)
	b.netns = netns
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return caps, errors.Join(err, netns.Close())
	}
	defer func() { err = errors.Join(err, b.Destroy(context.WithoutCancel(ctx))) }()
	if err := b.Start(ctx, sandbox.StartSpec{
		Hostname: "probe",
		Root:     sandbox.Root{Dir: filepath.Join(dir, "root")},
		Guest:    sandbox.Guest{Dir: filepath.Join(dir, "guest")},
		Limits:   probeLimits,
	}); err != nil {
		return caps, err
	}
	if err := checkConfined(b.guest.PID); err != nil {
		return caps, err
	}
	return r.report(b)
}

// report says what the running box b is held by.
func (r *Runtime) report(b *box) (sandbox.Caps, error) {
	caps := sandbox.Caps{
		Isolation: fmt.Sprintf("namespaces (%s): sandboxes use this machine's kernel directly, so there is NO kernel isolation: "+
			"one bug in the kernel is enough to get out. Only for code you trust", b.engine.name),
		// Kept by the size of a tmpfs, which mountRoot would have failed without.
		Enforced: sandbox.Enforced{Disk: true},
	}
	g, err := findGroup(r.groupPath(b.id))
	if err != nil {
		return caps, err
	}
	for _, limit := range []struct {
		holds                  *bool
		name, controller       string
		v1, v2                 string
		inVersion1, inVersion2 string
	}{
		{&caps.Enforced.Memory, "memory", "memory", "memory.limit_in_bytes", "memory.max",
			strconv.FormatInt(probeLimits.HostMemory(), 10), strconv.FormatInt(probeLimits.HostMemory(), 10)},
		{&caps.Enforced.CPU, "CPU", "cpu", "cpu.cfs_quota_us", "cpu.max",
			strconv.Itoa(probeLimits.CPUs * cpuPeriod), fmt.Sprint(probeLimits.CPUs*cpuPeriod, cpuPeriod)},
		{&caps.Enforced.Processes, "process", "pids", "pids.max", "pids.max",
			strconv.Itoa(probeLimits.Processes), strconv.Itoa(probeLimits.Processes)},
	} {
		text, err := g.read(limit.controller, limit.v1, limit.v2)
		*limit.holds = err == nil && (text == limit.inVersion1 || text == limit.inVersion2) && g.contains(limit.controller, b.guest.PID)
		if !*limit.holds {
			caps.Missing = append(caps.Missing, fmt.Sprintf("a %s limit that takes effect: the cgroup does not hold it", limit.name))
		}
	}
	return caps, nil
}

// checkConfined reads back what the kernel says of the container's process.
// An engine may have been built without any of it.
func checkConfined(pid int) error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	status := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.TrimSpace(value)
	}
	if status["Seccomp"] != "2" {
		return errors.New("it does not filter system calls: it was built without seccomp")
	}
	bounding, err := strconv.ParseUint(status["CapBnd"], 16, 64)
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, c := range []int{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN, unix.CAP_SYS_MODULE, unix.CAP_SYS_PTRACE, unix.CAP_MKNOD} {
		if bounding&(1<<c) != 0 {
			return fmt.Errorf("it does not take capability %d away", c)
		}
	}
	for _, kind := range []string{"pid", "mnt", "ipc", "uts", "net"} {
		own, errOwn := os.Readlink("/proc/self/ns/" + kind)
		its, errIts := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err := errors.Join(errOwn, errIts); err != nil {
			return err
		}
		if own == its {
			return fmt.Errorf("it does not separate the %s namespace", kind)
		}
	}
	return nil
}

// sleeper returns a static executable that only sleeps, so that a probe needs
// nothing of the machine.
func sleeper() []byte {
	const ehsize, phsize, load = 64, 56, 0x400000
	size := uint64(ehsize + phsize + len(sleepCode))
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a bytes.Buffer does not fail
	put(elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(sleepMachine), Version: uint32(elf.EV_CURRENT),
		Entry: load + ehsize + phsize, Phoff: ehsize,
		Ehsize: ehsize, Phentsize: phsize, Phnum: 1, Shentsize: 64,
	})
	put(elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: load, Paddr: load, Filesz: size, Memsz: size, Align: 4096,
	})
	b.Write(sleepCode)
	return b.Bytes()
}
