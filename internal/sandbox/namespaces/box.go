package namespaces

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// box implements sandbox.Box.
type box struct {
	runtime *Runtime
	id, dir string
	engine  *engine

	mu    sync.Mutex // held by Start, Destroy and release
	netns *os.File   // until the box is started
	guest *process   // its init process; nil until it is started
	words *os.File   // what it wrote to standard error; nil when it was adopted
	gone  bool       // nothing of it is left

	watcher sync.WaitGroup
	once    sync.Once     // guards closing
	closing chan struct{} // closed when this process lets go of the box
	ended   chan struct{} // closed when the box has ended; exit is complete then
	exit    sandbox.Exit
}

var _ sandbox.Box = (*box)(nil)

func (r *Runtime) newBox(id string, e *engine) *box {
	return &box{
		runtime: r, id: id, dir: r.boxDir(id), engine: e,
		closing: make(chan struct{}), ended: make(chan struct{}),
		exit: sandbox.Exit{Status: -1},
	}
}

// ID implements sandbox.Box.
func (b *box) ID() string { return b.id }

// Start implements sandbox.Box. When it fails the box is of no use any more
// and must be destroyed.
func (b *box) Start(ctx context.Context, spec sandbox.StartSpec) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.start(ctx, spec); err != nil {
		return fmt.Errorf("start box %s: %w", b.id, err)
	}
	return nil
}

func (b *box) start(ctx context.Context, spec sandbox.StartSpec) (err error) {
	switch {
	case b.gone:
		return sandbox.ErrGone
	case b.netns == nil:
		return errors.New("it was started before")
	}
	if err := checkStart(spec); err != nil {
		return err
	}
	netns := b.netns
	b.netns = nil
	defer func() { err = errors.Join(err, netns.Close()) }()

	files := filepath.Join(b.dir, "mounts")
	if err := os.Mkdir(files, 0o700); err != nil {
		return err
	}
	// The container has mounts of its own by then.
	defer func() { err = errors.Join(err, removeDir(files)) }()
	root, err := mountRoot(files, spec.Root, spec.Limits.DiskMB)
	if err != nil {
		return err
	}
	if err := writeSpec(b.dir, containerSpec(spec, root, fdPath(netns), b.runtime.groupPath(b.id))); err != nil {
		return err
	}
	if b.words, err = newWords(); err != nil {
		return err
	}
	pid, err := b.engine.run(ctx, b.id, b.dir, b.words)
	if err != nil {
		return err
	}
	if b.guest, err = openProcess(pid, 0); err != nil {
		return fmt.Errorf("the guest has ended at once: %w: %s", err, lastWords(b.words))
	}
	b.watch()
	return b.save()
}

// watch notes when the guest ends, for whatever reason, until release.
func (b *box) watch() {
	guest, words := b.guest, b.words
	b.watcher.Go(func() {
		err := guest.wait()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			b.runtime.log.Error("cannot watch a box any longer", "box", b.id, "error", err)
			return
		}
		g, err := findGroup(b.runtime.groupPath(b.id))
		b.exit.OOM = err == nil && g.oomKilled()
		b.exit.At = time.Now()
		if words != nil {
			if text := lastWords(words); text != "" {
				b.runtime.log.Warn("a guest has ended", "box", b.id, "stderr", text)
			}
		}
		close(b.ended)
	})
}

// Wait implements sandbox.Box. The status is not known: the guest is not a
// child of the server, which it outlives.
func (b *box) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-b.ended:
		return b.exit, nil
	default:
	}
	select {
	case <-b.ended:
		return b.exit, nil
	case <-b.closing:
		return sandbox.Exit{}, fmt.Errorf("wait for box %s: the runtime was closed", b.id)
	case <-ctx.Done():
		return sandbox.Exit{}, fmt.Errorf("wait for box %s: %w", b.id, context.Cause(ctx))
	}
}

// Usage implements sandbox.Box.
func (b *box) Usage(context.Context) (sandbox.Usage, error) {
	u, err := b.usage()
	if err != nil {
		return sandbox.Usage{}, fmt.Errorf("read usage of box %s: %w", b.id, err)
	}
	return u, nil
}

func (b *box) usage() (sandbox.Usage, error) {
	select {
	case <-b.ended:
		return sandbox.Usage{}, sandbox.ErrGone
	default:
	}
	b.mu.Lock()
	guest := b.guest
	b.mu.Unlock()
	if guest == nil {
		return sandbox.Usage{}, nil // nothing runs yet
	}
	g, err := findGroup(b.runtime.groupPath(b.id))
	if err != nil {
		return sandbox.Usage{}, err
	}
	u, err := g.usage()
	if errors.Is(err, fs.ErrNotExist) {
		return namespaceUsage(guest.PID)
	}
	return u, err
}

// Destroy implements sandbox.Box. When it fails it may be called again.
func (b *box) Destroy(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return nil
	}
	if err := b.destroy(ctx); err != nil {
		return fmt.Errorf("destroy box %s: %w", b.id, err)
	}
	b.gone = true
	b.runtime.forget(b)
	return nil
}

func (b *box) destroy(ctx context.Context) error {
	if b.guest != nil {
		select {
		case <-b.closing:
			return errors.New("the runtime was closed")
		default:
		}
		if err := b.guest.kill(); err != nil {
			return err
		}
		if err := await(ctx, b.ended); err != nil {
			return err
		}
	}
	if err := b.runtime.wipe(ctx, b.id, b.engine); err != nil {
		return err
	}
	if b.guest == nil {
		b.exit.At = time.Now()
		close(b.ended)
	}
	b.letGo()
	return nil
}

// release gives back what this process holds of the box, which may go on
// running.
func (b *box) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.letGo()
}

// letGo does release's work. b.mu must be held.
func (b *box) letGo() {
	b.once.Do(func() {
		close(b.closing)
		if b.guest != nil {
			b.guest.close()
		}
		b.watcher.Wait()
		for _, f := range []*os.File{b.netns, b.words} {
			if f != nil {
				_ = f.Close() // nothing to flush
			}
		}
	})
}
