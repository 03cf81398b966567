// Package gvisor runs boxes in gVisor, which is linked in as a library: the
// sentry, gVisor's kernel in user space, and its file server are this same
// executable under another name (see Dispatch).
//
// A box is one sentry process, in a network namespace that was given to it,
// running as nobody without capabilities in an empty root. Prepare boots it
// with a pause program of 160 bytes; Start adds a second container with the
// template, whose init process is the guest daemon. An image root is read by
// the sentry itself; a directory root has a file server of its own, the gofer,
// which sees nothing else.
//
// Everything on the machine that belongs to a box bears its id: the directory
// <root>/box/<id> with its record and control socket, the cgroup
// /moat-<instance>/<id>, and that directory on the command line of its
// processes. Boxes outlive the server.
package gvisor

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// Config is what a Runtime needs.
type Config struct {
	// Root is an absolute directory that belongs to the runtime alone. No two
	// runtimes may use it at once.
	Root string
	// Instance distinguishes installations on one machine: it names the parent
	// of their cgroups. Lower case letters, digits and dashes.
	Instance string
	Logger   *slog.Logger
}

const maxID = 40

var (
	validID       = regexp.MustCompile(fmt.Sprintf(`^[a-z0-9]{1,%d}$`, maxID))
	validInstance = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
)

var errClosed = errors.New("the runtime is closed")

// Runtime implements sandbox.Runtime.
type Runtime struct {
	exe      string // what a box's processes execute
	root     string
	instance string
	log      *slog.Logger
	netns    *os.File // empty, for gofers
	// noGroups says why boxes get no cgroups here; nil when they do.
	noGroups error

	mu sync.Mutex
	// boxes were prepared or loaded by this process; nil while one is being
	// made. The map is nil once the runtime is closed.
	boxes map[string]*box
}

var _ sandbox.Runtime = (*Runtime)(nil)

// New prepares root. It fails where no box could ever be booted.
func New(cfg Config) (*Runtime, error) { return open(cfg, "/proc/self/exe") }

// open is New with an executable that calls Dispatch.
func open(cfg Config, exe string) (*Runtime, error) {
	switch {
	case !filepath.IsAbs(cfg.Root) || filepath.Clean(cfg.Root) != cfg.Root:
		return nil, fmt.Errorf("gvisor: root %q is not a clean absolute path", cfg.Root)
	case !validInstance.MatchString(cfg.Instance):
		return nil, fmt.Errorf("gvisor: instance %q is not made of lower case letters, digits and dashes", cfg.Instance)
	case cfg.Logger == nil:
		return nil, errors.New("gvisor: logger is missing")
	case os.Geteuid() != 0:
		return nil, fmt.Errorf("gvisor: running as user %d, root is needed", os.Geteuid())
	}
	if err := checkExecutable(exe); err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	r := &Runtime{exe: exe, root: cfg.Root, instance: cfg.Instance, log: cfg.Logger, boxes: map[string]*box{}}
	if err := os.MkdirAll(r.boxDir(""), 0o700); err != nil {
		return nil, fmt.Errorf("gvisor: create root: %w", err)
	}
	if err := writePauseImage(r.pauseImage()); err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	var err error
	if r.netns, err = newNetNS(); err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	log.SetTarget(logEmitter{cfg.Logger}) // gVisor's log is the process's, and goes to standard error
	r.noGroups = r.tryGroups()
	return r, nil
}

// Name implements sandbox.Runtime.
func (r *Runtime) Name() string { return "gvisor" }

// checkExecutable refuses an executable that cannot run in the empty root of a
// sentry: one that needs a loader.
func checkExecutable(path string) error {
	exe, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read executable: %w", err)
	}
	defer exe.Close()
	for _, p := range exe.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked, it must be built with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// tryGroups makes a cgroup with limits, enters it and removes it again.
func (r *Runtime) tryGroups() error {
	g, err := findGroup(r.groupPath("try" + strconv.Itoa(os.Getpid())))
	if err != nil {
		return err
	}
	if err := g.install(sandbox.Limits{CPUs: 1, MemoryMB: 64}); err != nil {
		return err
	}
	err = onThrowawayThread(func() error {
		leave, err := g.enter(new(syscall.SysProcAttr))
		if err == nil {
			leave()
		}
		return err
	})
	return errors.Join(err, g.remove(context.Background()))
}

// Prepare implements sandbox.Runtime.
func (r *Runtime) Prepare(ctx context.Context, id, netns string, limits sandbox.Limits) (sandbox.Box, error) {
	b, err := r.prepare(ctx, id, netns, limits)
	if err != nil {
		return nil, fmt.Errorf("prepare box %s: %w", id, err)
	}
	return b, nil
}

func (r *Runtime) prepare(ctx context.Context, id, netns string, limits sandbox.Limits) (*box, error) {
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("its id is not made of 1 to %d lower case letters and digits", maxID)
	}
	if err := checkLimits(limits); err != nil {
		return nil, err
	}
	b, err := r.describe(id, limits)
	if err != nil {
		return nil, err
	}
	if err := r.reserve(id); err != nil {
		return nil, err
	}
	// By its directory List finds the box from here on. If there is one already
	// it is not ours to remove.
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		r.forget(id)
		return nil, fmt.Errorf("create box directory: %w", err)
	}
	err = b.boot(ctx, netns)
	if err == nil {
		err = r.publish(b)
	}
	if err != nil {
		// The caller's time may be up; what was begun is removed all the same.
		err = errors.Join(err, b.Destroy(context.WithoutCancel(ctx)))
		r.forget(id)
		return nil, err
	}
	return b, nil
}

// Load implements sandbox.Runtime.
func (r *Runtime) Load(_ context.Context, id string) (sandbox.Box, error) {
	if b := r.known(id); b != nil {
		return b, nil
	}
	b, err := r.load(id)
	if err != nil {
		return nil, fmt.Errorf("load box %s: %w", id, err)
	}
	return b, nil
}

func (r *Runtime) load(id string) (*box, error) {
	if !validID.MatchString(id) {
		return nil, sandbox.ErrGone // there never was one
	}
	if err := r.reserve(id); err != nil {
		return nil, err
	}
	b, err := r.adopt(id)
	if err != nil {
		r.forget(id)
		return nil, err
	}
	if err := r.publish(b); err != nil {
		b.release()
		return nil, err
	}
	return b, nil
}

// Close implements sandbox.Runtime.
func (r *Runtime) Close() error {
	r.mu.Lock()
	boxes := r.boxes
	r.boxes = nil
	r.mu.Unlock()
	for _, b := range boxes {
		if b != nil {
			b.mu.Lock()
			b.release()
			b.mu.Unlock()
		}
	}
	err := r.netns.Close()
	g, err1 := findGroup(r.groupPath(""))
	if err1 != nil {
		return errors.Join(err, err1)
	}
	dirs, err1 := g.dirs()
	for _, dir := range dirs {
		// Boxes that still run keep theirs.
		if e := unix.Rmdir(dir); e != nil && !errors.Is(e, unix.EBUSY) && !errors.Is(e, unix.ENOTEMPTY) {
			err = errors.Join(err, fmt.Errorf("remove cgroup %s: %w", dir, e))
		}
	}
	return errors.Join(err, err1)
}

// reserve keeps an id for a box that is being made.
func (r *Runtime) reserve(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.boxes == nil {
		return errClosed
	}
	if _, taken := r.boxes[id]; taken {
		return errors.New("a box with this id exists")
	}
	r.boxes[id] = nil
	return nil
}

// publish makes a box known under its reserved id.
func (r *Runtime) publish(b *box) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.boxes == nil {
		return errClosed
	}
	r.boxes[b.id] = b
	return nil
}

// forget gives an id free.
func (r *Runtime) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.boxes, id)
}

// known returns a box that this process has made or loaded.
func (r *Runtime) known(id string) *box {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.boxes[id]
}

// boxDir is the directory of one box, or of all when id is empty.
func (r *Runtime) boxDir(id string) string { return filepath.Join(r.root, "box", id) }

// groupPath is the cgroup of one box, or their parent when id is empty.
func (r *Runtime) groupPath(id string) string {
	return filepath.Join("/moat-"+r.instance, id)
}

func (r *Runtime) pauseImage() string { return filepath.Join(r.root, "pause.erofs") }
