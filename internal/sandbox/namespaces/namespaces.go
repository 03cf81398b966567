// Package namespaces runs boxes as ordinary containers, with the machine's own
// runc or crun. It is for code one trusts: a box shares the host's kernel, so
// one bug in that kernel is enough to leave it. What it takes away is what a
// container runtime can: capabilities, system calls outside a list, devices,
// other processes, the network outside the given namespace. Root inside is the
// host's root without its powers; user namespaces are not used, because the
// template's files belong to that root and its /usr is the host's.
//
// Prepare only reserves: it writes a record and starts no process, so a pool of
// such boxes costs nothing and saves little. Start makes the root (a read-only
// lower layer under an overlay on a tmpfs of limited size), runs the container
// and lets go of every mount on the host; from then on only the container holds
// them, and they end with it.
//
// Everything on the machine that belongs to a box bears its id: the directory
// <root>/box/<id>, the runtime's state <root>/state/<engine>/<id>, the cgroup
// /moat-<instance>-ns/<id>. Boxes outlive the server.
package namespaces

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// Name is this driver's name.
const Name = "namespaces"

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

var (
	validID       = regexp.MustCompile(`^[a-z0-9]{1,40}$`)
	validInstance = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
)

// Runtime implements sandbox.Runtime.
type Runtime struct {
	root     string
	instance string
	log      *slog.Logger

	// choice guards engine and is held while engines are tried.
	choice sync.Mutex
	engine *engine // the one that works here; nil until it was found

	mu    sync.Mutex
	boxes map[string]*box // prepared or loaded by this process; nil when closed
}

var _ sandbox.Runtime = (*Runtime)(nil)

// New prepares root. Whether boxes can be run is for Probe to find out.
func New(cfg Config) (*Runtime, error) {
	switch {
	case !filepath.IsAbs(cfg.Root) || filepath.Clean(cfg.Root) != cfg.Root:
		return nil, fmt.Errorf("namespaces: root %q is not a clean absolute path", cfg.Root)
	case !validInstance.MatchString(cfg.Instance):
		return nil, fmt.Errorf("namespaces: instance %q is not made of lower case letters, digits and dashes", cfg.Instance)
	case cfg.Logger == nil:
		return nil, errors.New("namespaces: logger is missing")
	case os.Geteuid() != 0:
		return nil, fmt.Errorf("namespaces: running as user %d, root is needed", os.Geteuid())
	}
	r := &Runtime{root: cfg.Root, instance: cfg.Instance, log: cfg.Logger, boxes: make(map[string]*box)}
	if err := os.MkdirAll(r.boxDir(""), 0o700); err != nil {
		return nil, fmt.Errorf("namespaces: %w", err)
	}
	if err := isolate(r.root); err != nil {
		return nil, fmt.Errorf("namespaces: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(r.root, probePattern))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("namespaces: remove leftovers of a probe: %w", err)
	}
	return r, nil
}

// Name implements sandbox.Runtime.
func (r *Runtime) Name() string { return Name }

func (r *Runtime) boxDir(id string) string { return filepath.Join(r.root, "box", id) }

func (r *Runtime) groupPath(id string) string { return filepath.Join("/moat-"+r.instance+"-ns", id) }

// Prepare implements sandbox.Runtime. It reserves the id and takes hold of the
// network namespace; nothing runs before Start.
func (r *Runtime) Prepare(ctx context.Context, id, netns string, limits sandbox.Limits) (sandbox.Box, error) {
	b, err := r.prepare(ctx, id, netns, limits)
	if err != nil {
		return nil, fmt.Errorf("prepare box %.50q: %w", id, err)
	}
	return b, nil
}

func (r *Runtime) prepare(ctx context.Context, id, netns string, limits sandbox.Limits) (*box, error) {
	if !validID.MatchString(id) {
		return nil, errors.New("the id is not made of 1 to 40 lower case letters and digits")
	}
	if err := checkLimits(limits); err != nil {
		return nil, err
	}
	engine, err := r.choose(ctx)
	if err != nil {
		return nil, err
	}
	ns, err := openNetNS(netns)
	if err != nil {
		return nil, err
	}
	b := r.newBox(id, engine)
	b.netns = ns
	if err := r.add(b); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		r.forget(b)
		return nil, errors.Join(err, ns.Close())
	}
	if err := b.save(); err != nil {
		return nil, errors.Join(err, b.Destroy(context.WithoutCancel(ctx)))
	}
	return b, nil
}

// add makes b known; its id must be free.
func (r *Runtime) add(b *box) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.boxes == nil:
		return errors.New("the runtime is closed")
	case r.boxes[b.id] != nil:
		return errors.New("a box with this id exists")
	}
	r.boxes[b.id] = b
	return nil
}

func (r *Runtime) known(id string) *box {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.boxes[id]
}

func (r *Runtime) forget(b *box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.boxes[b.id] == b {
		delete(r.boxes, b.id)
	}
}

// Close implements sandbox.Runtime. Boxes go on running; their Wait returns an
// error.
func (r *Runtime) Close() error {
	r.mu.Lock()
	boxes := r.boxes
	r.boxes = nil
	r.mu.Unlock()
	for _, b := range boxes {
		b.release()
	}
	left, err := os.ReadDir(r.boxDir(""))
	if err != nil || len(left) > 0 {
		return err // what runs needs the rest
	}
	if err := removeGroups(context.Background(), r.groupPath("")); err != nil {
		return fmt.Errorf("close namespaces: %w", err)
	}
	if err := unmountBelow(r.root); err != nil {
		return fmt.Errorf("close namespaces: %w", err)
	}
	return nil
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
