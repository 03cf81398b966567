package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/pinring"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// nobody is the user that a sentry runs as, on the host and in its own user
// namespace, which knows no other.
const nobody = 65534

// sentryCapabilities let a sentry build its own empty root and then drop all of
// them, from the bounding set too.
var sentryCapabilities = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP}

// bootSentry executes the sentry in a network namespace and returns when its
// control server answers.
func (b *box) bootSentry(ctx context.Context, image string, netns *os.File) error {
	var files fileSet
	ready := files.addPipe("start-sync-fd", false)
	defer closeAll([]*os.File{ready})
	b.donateToSentry(&files, image)
	if files.err != nil {
		files.close()
		return files.err
	}
	mounts := pauseMounts()
	var err error
	b.sentry, err = launch{
		exe:   b.runtime.exe,
		name:  sentryName,
		flags: b.flags,
		command: append([]string{
			"boot", "--bundle=" + b.dir, "--setup-root", "--apply-caps", "--gofer-mount-confs=" + mounts.String(),
			"--product-name=gVisor", // otherwise the host's appears in the box's /sys
		}, resourceFlags(b.limits)...),
		id:     b.id,
		files:  files.donations,
		stderr: b.held.words,
		netns:  netns,
		group:  b.group,
		attr:   sentryAttr(),
	}.start()
	files.close() // ours must be closed, or the end of theirs could not be seen
	if err != nil {
		return err
	}
	b.watch()
	if err := awaitByte(ctx, ready); err != nil {
		return fmt.Errorf("wait for the sentry to boot: %w %s", err, b.held.said())
	}
	return nil
}

// donateToSentry opens what the sentry inherits and what this process holds.
func (b *box) donateToSentry(files *fileSet, image string) {
	b.held = &held{}
	// The kernel takes milliseconds to close a packet socket. The sentry pins
	// its own to this ring, which we hold too: when it ends it is not the last
	// holder, and what we close is closed aside.
	ring, err := pinring.NewDisabledIOURing()
	if err == nil {
		files.lend("pin-ring-fd", ring)
		b.held.ring = ring
	} else {
		b.runtime.log.Debug("boxes end slower without io_uring", "error", err)
	}
	socket, err := bindControl(b.controlPath())
	files.add("controller-fd", socket, err)
	spec, err := json.Marshal(pauseSpec(b.dir))
	if err != nil {
		files.err = errors.Join(files.err, fmt.Errorf("encode pause container: %w", err))
		return
	}
	files.addMem("spec-fd", spec)
	root, err := os.Open(image)
	files.add("io-fds", root, err)
	b.held.name = files.addPipe("stdio-fds", true)
	b.held.answer = files.addPipe("stdio-fds", false)
	stderr, err := fixedFile("stderr", 0)
	files.add("stdio-fds", stderr, err)
	files.err = errors.Join(files.err, b.held.newWords())
}

// sentryAttr gives a sentry namespaces of its own for everything but the
// network, and the identity of nobody. It starts with few capabilities and
// drops them itself (--apply-caps), which saves executing it a second time.
func sentryAttr() syscall.SysProcAttr {
	own := []syscall.SysProcIDMap{{ContainerID: nobody, HostID: nobody, Size: 1}}
	return syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWNS | unix.CLONE_NEWUTS |
			unix.CLONE_NEWPID | unix.CLONE_NEWUSER,
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		UidMappings: own,
		GidMappings: own,
		AmbientCaps: sentryCapabilities,
	}
}

// resourceFlags tell a sentry what to show inside as the machine's size.
func resourceFlags(l sandbox.Limits) []string {
	host := hostMemory()
	memory := host
	if l.MemoryMB > 0 {
		memory = min(memory, uint64(l.MemoryMB)<<20)
	}
	cpus := runtime.NumCPU()
	if l.CPUs > 0 {
		// A program that sees one processor may leave out locks it still
		// needs: the sentry's threads run on several.
		cpus = min(cpus, max(l.CPUs, 2))
	}
	flags := []string{
		"--total-host-memory=" + strconv.FormatUint(host, 10),
		"--total-memory=" + strconv.FormatUint(memory, 10),
		"--cpu-num=" + strconv.Itoa(cpus),
	}
	if l.CPUs > 0 {
		flags = append(flags,
			"--cpu-quota="+strconv.Itoa(l.CPUs*cpuPeriod),
			"--cpu-period="+strconv.Itoa(cpuPeriod))
	}
	return flags
}

// hostMemory is the machine's memory in bytes.
func hostMemory() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0 // documented to fail only for a bad pointer
	}
	return uint64(info.Totalram) * uint64(info.Unit)
}

// awaitByte waits for one byte, or for ctx.
func awaitByte(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var buf [1]byte
	_, err := io.ReadFull(f, buf[:])
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the process ended")
	}
	if err == nil && buf[0] != 0 {
		return fmt.Errorf("it answered %d", buf[0])
	}
	return err
}

// controlPath is the socket through which the sentry is told what to do.
func (b *box) controlPath() string { return filepath.Join(b.dir, "control.sock") }
