package gvisor

import (
	"errors"
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// guestContainer names the container that holds the template, inside a box.
// The other one, which only keeps the box alive, bears the box's id.
const guestContainer = "guest"

// guestCapabilities are Docker's default without NET_RAW. NET_ADMIN is not
// among them either: the addresses of the box are not its to change.
var guestCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// maxOpenFiles is RLIMIT_NOFILE inside a box, soft and hard.
const (
	softOpenFiles = 1 << 16
	maxOpenFiles  = 1 << 20
)

// pauseSpec describes the container that a prepared box consists of: the pause
// program on a read-only root. It may name the machine, nothing else.
func pauseSpec(boxDir string) *specs.Spec {
	caps := []string{"CAP_SYS_ADMIN"} // for sethostname
	return &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: boxDir, Readonly: true},
		Annotations: map[string]string{specutils.ContainerdContainerTypeAnnotation: specutils.ContainerdContainerTypeSandbox},
		Process: &specs.Process{
			Args:            []string{pauseProgram},
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Linux: &specs.Linux{},
	}
}

// pauseMounts says that the root of the pause container is an image.
func pauseMounts() specutils.GoferMountConfFlags {
	return specutils.GoferMountConfFlags{{Lower: specutils.Erofs, Upper: specutils.NoOverlay}}
}

// guestSpec describes the container with the template, whose init process is
// the guest daemon.
func guestSpec(boxID, boxDir string, s sandbox.StartSpec) *specs.Spec {
	root := s.Root.Dir
	if root == "" {
		root = boxDir // not used: the root is an image
	}
	limits := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: softOpenFiles, Hard: maxOpenFiles}}
	if n := uint64(s.Limits.Processes); n > 0 {
		limits = append(limits, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Soft: n, Hard: n})
	}
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: root},
		Annotations: map[string]string{
			specutils.ContainerdContainerTypeAnnotation: specutils.ContainerdContainerTypeContainer,
			specutils.ContainerdSandboxIDAnnotation:     boxID,
		},
		Mounts: guestMounts(s.Guest.Image),
		Process: &specs.Process{
			Args:         append([]string{sandbox.GuestDir + "/guest"}, s.Guest.Args...),
			Env:          s.Guest.Env,
			Cwd:          "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: guestCapabilities, Effective: guestCapabilities, Permitted: guestCapabilities},
			Rlimits:      limits,
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}}},
	}
}

// guestMounts lists what is mounted over the root. gVisor adds /dev/pts.
func guestMounts(guestImage string) []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc"},
		{Destination: "/sys", Type: "sysfs", Options: []string{"ro"}},
		{Destination: "/dev", Type: "dev"},
		{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"mode=1777", "size=64m"}},
		{Destination: sandbox.GuestDir, Type: "erofs", Source: guestImage, Options: []string{"ro"}},
		// gVisor puts a tmpfs over an empty /tmp unless a mount for it is
		// stated, and skips mounts of a type it does not know. So /tmp stays
		// part of the root, under its quota, and renames across work.
		{Destination: "/tmp", Type: "moat-none"},
	}
}

// guestMountConf says how the root and the guest's image are backed, in this
// order: a read-only lower layer, and over the root a layer in memory that
// holds diskMB MiB.
func guestMountConf(root sandbox.Root, diskMB int) specutils.GoferMountConfFlags {
	lower := specutils.Erofs
	if root.Dir != "" {
		lower = specutils.Lisafs
	}
	var size string
	if diskMB > 0 {
		size = strconv.Itoa(diskMB) + "m"
	}
	return specutils.GoferMountConfFlags{
		{Lower: lower, Upper: specutils.MemoryOverlay, Size: size},
		{Lower: specutils.Erofs, Upper: specutils.NoOverlay},
	}
}

// checkStart checks a specification by itself.
func checkStart(s sandbox.StartSpec) error {
	if (s.Root.Image == "") == (s.Root.Dir == "") {
		return fmt.Errorf("root must be an image or a directory, got image %q and directory %q", s.Root.Image, s.Root.Dir)
	}
	if s.Guest.Image == "" {
		return errors.New("guest image is missing")
	}
	if len(s.Hostname) > 64 {
		return fmt.Errorf("host name %q is longer than 64 bytes", s.Hostname)
	}
	return checkLimits(s.Limits)
}

func checkLimits(l sandbox.Limits) error {
	for _, f := range []struct {
		name  string
		value int
	}{{"cpus", l.CPUs}, {"memoryMB", l.MemoryMB}, {"diskMB", l.DiskMB}, {"processes", l.Processes}} {
		if f.value < 0 {
			return fmt.Errorf("limit %s is negative: %d", f.name, f.value)
		}
	}
	return nil
}
