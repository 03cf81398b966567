package sandbox

import (
	"context"
	"time"
)

// Runtime boots isolated boxes. It is given a network namespace and never
// looks inside it: slots and policy belong to the network code.
//
// A box is booted before anyone knows what will run in it (Prepare); Start
// adds the template. Boxes outlive the process that made them: after a restart
// Load finds them again by id.
type Runtime interface {
	// Name is the driver's name as operators write it: "gvisor", "namespaces".
	Name() string
	// Probe boots something real and reports what this machine gives.
	Probe(ctx context.Context) (Caps, error)
	// Prepare boots an empty box in the network namespace at netns, with
	// limits that Start can still change except for memory and disk.
	Prepare(ctx context.Context, id, netns string, limits Limits) (Box, error)
	// Load finds a box made earlier, also by another process of this
	// installation. It returns ErrGone when the box no longer runs.
	Load(ctx context.Context, id string) (Box, error)
	// List names every box of which this installation has any trace: state
	// files, processes, cgroups or mounts, running or not.
	List(ctx context.Context) ([]string, error)
	// Remove destroys whatever is left of the box with this id: processes,
	// state, cgroups, mounts. Removing what does not exist is no error.
	Remove(ctx context.Context, id string) error
	// Close releases what the runtime itself holds on the machine (shared
	// mounts, its cgroup parent). Running boxes are not touched; what they
	// still need is kept.
	Close() error
}

// Box is one booted, isolated environment.
type Box interface {
	ID() string
	// Start adds the root filesystem and runs the guest daemon in it as init.
	Start(ctx context.Context, spec StartSpec) error
	// Wait blocks until the box has ended, for whatever reason. Of one that has
	// it tells also when ctx is done.
	Wait(ctx context.Context) (Exit, error)
	// Usage reads what the box consumes now, from outside.
	Usage(ctx context.Context) (Usage, error)
	// Destroy ends the box and removes its traces. It may be called twice.
	Destroy(ctx context.Context) error
}

// StartSpec is what Start adds to a prepared box.
type StartSpec struct {
	Hostname string
	Root     Root
	// Guest is the daemon that becomes the box's init process.
	Guest  Guest
	Limits Limits
}

// Root is the read-only lower layer of a box's root filesystem. Exactly one of
// the two is set.
type Root struct {
	// Image is the path of an uncompressed EROFS image.
	Image string
	// Dir is a directory; mounts below it (the host's /usr in the base
	// template) belong to it.
	Dir string
}

// Guest says where the guest daemon is on the host, in both forms a driver may
// need, and how to run it. It appears inside the box below GuestDir, read-only.
type Guest struct {
	// Image is an EROFS image whose root holds the daemon as "guest", and what
	// else it needs.
	Image string
	// Dir is a directory that holds the same files.
	Dir string
	// Args follow the program's path on its command line.
	Args []string
	// Env is the guest's environment, each "NAME=value".
	Env []string
}

// GuestDir is where the guest daemon is mounted inside every box.
const GuestDir = "/.moat"

// Limits bound one box. Zero means unlimited.
type Limits struct {
	CPUs      int `json:"cpus"`      // whole processors' worth of time
	MemoryMB  int `json:"memoryMB"`  // MiB that programs inside see and use
	DiskMB    int `json:"diskMB"`    // MiB of the writable layer
	Processes int `json:"processes"` // processes and threads inside
}

// HostMemory is the most memory of the host that a box may take, in bytes, not
// counting what its runtime needs; 0 means unlimited. The writable layer lives in
// memory, so there is room for both: a full disk is an error that programs can
// deal with, memory that runs out is the end of the box.
func (l Limits) HostMemory() int64 {
	if l.MemoryMB == 0 {
		return 0
	}
	return int64(l.MemoryMB+l.DiskMB) << 20
}

// SameMemory reports whether a box prepared with l can be started with other.
func (l Limits) SameMemory(other Limits) bool {
	return l.MemoryMB == other.MemoryMB && l.DiskMB == other.DiskMB
}

// Enforced says which limits hold on this machine.
type Enforced struct {
	CPU       bool `json:"cpu"`
	Memory    bool `json:"memory"`
	Disk      bool `json:"disk"`
	Processes bool `json:"processes"`
}

// Caps is what a runtime gives on this machine, found out by doing it.
type Caps struct {
	// Kernel is true when code inside does not talk to the host's kernel
	// directly; false means plain namespaces.
	Kernel bool
	// Isolation describes it in a sentence for people.
	Isolation string
	Enforced  Enforced
	// Missing lists, in plain words, what the machine lacks.
	Missing []string
}

// Exit says how a box ended.
type Exit struct {
	// OOM is true when the memory limit ended it.
	OOM bool
	// Status is the guest's exit status where it is known, else -1.
	Status int
	At     time.Time
}

// Usage is one reading of a box's consumption, seen from the host.
type Usage struct {
	CPUTime     time.Duration // since the box was booted
	MemoryBytes int64
}
