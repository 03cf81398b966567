package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	sentry "gvisor.dev/gvisor/runsc/boot"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// ending is how a box comes to its end, and how this process learns of it.
type ending struct {
	watchers sync.WaitGroup
	watched  bool          // there is a watcher
	guest    *control      // on which the guest's watcher waits
	over     chan struct{} // closed when the sentry has ended
	closing  chan struct{} // closed when this process lets go of the box
	released bool          // it has
	gone     bool          // all processes have ended

	mu   sync.Mutex
	exit sandbox.Exit // complete once over is closed
}

func newEnding() ending {
	return ending{
		over: make(chan struct{}), closing: make(chan struct{}),
		exit: sandbox.Exit{Status: -1},
	}
}

// watch notes when the sentry ends, for whatever reason, until release.
func (b *box) watch() {
	b.end.watched = true
	held := b.held
	b.end.watchers.Go(func() {
		if err := b.sentry.wait(context.Background()); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				b.runtime.log.Error("cannot watch a box any longer", "box", b.id, "error", err)
			}
			return
		}
		if words := held.said(); words != "" {
			b.runtime.log.Warn("a box has ended", "box", b.id, "stderr", words)
		}
		b.end.mu.Lock()
		b.end.exit.OOM = b.group.oomKilled()
		b.end.exit.At = time.Now()
		b.end.mu.Unlock()
		close(b.end.over)
	})
}

// watchGuest ends the box when the guest ends, until release: what is left
// then is an empty shell.
func (b *box) watchGuest() error {
	c, err := dialControl(b.controlPath())
	if err != nil {
		return err
	}
	b.end.guest = c
	b.end.watchers.Go(func() {
		var ws unix.WaitStatus
		if err := c.call(context.Background(), sentry.ContMgrWait, guestContainer, nil, &ws); err != nil {
			return // the sentry has ended or the box was released
		}
		b.end.mu.Lock()
		b.end.exit.Status = exitStatus(ws)
		b.end.mu.Unlock()
		b.runtime.log.Warn("a guest has ended", "box", b.id, "status", exitStatus(ws))
		if err := b.sentry.kill(); err != nil {
			b.runtime.log.Error("cannot end a box without guest", "box", b.id, "error", err)
		}
	})
	return nil
}

// exitStatus is a process's status as a shell shows it.
func exitStatus(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// Wait implements sandbox.Box.
func (b *box) Wait(ctx context.Context) (sandbox.Exit, error) {
	var err error
	select {
	case <-b.end.over:
	case <-b.end.closing:
		err = errClosed
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	select {
	case <-b.end.over: // whatever else is true
	default:
		return sandbox.Exit{}, fmt.Errorf("wait for box %s: %w", b.id, err)
	}
	b.end.mu.Lock()
	defer b.end.mu.Unlock()
	return b.end.exit, nil
}

// Destroy implements sandbox.Box. When it fails it may be called again.
func (b *box) Destroy(ctx context.Context) error {
	if b.sentry != nil {
		if err := b.sentry.kill(); err != nil { // ends a Start that is under way, too
			return fmt.Errorf("destroy box %s: %w", b.id, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.destroy(ctx); err != nil {
		return fmt.Errorf("destroy box %s: %w", b.id, err)
	}
	b.runtime.forget(b.id)
	return nil
}

func (b *box) destroy(ctx context.Context) error {
	if !b.end.gone {
		if b.end.released {
			return errClosed
		}
		if err := b.endProcesses(ctx); err != nil {
			return err
		}
		b.end.gone = true
		b.release()
	}
	if err := b.group.remove(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(b.dir); err != nil {
		return fmt.Errorf("remove box directory: %w", err)
	}
	return nil
}

// endProcesses kills the processes and waits until they are gone.
func (b *box) endProcesses(ctx context.Context) error {
	if b.gofer != nil {
		if err := b.gofer.kill(); err != nil {
			return err
		}
	}
	if b.end.watched {
		if err := b.sentry.kill(); err != nil {
			return err
		}
		if _, err := b.Wait(ctx); err != nil {
			return err
		}
	}
	if b.gofer != nil {
		return b.gofer.wait(ctx)
	}
	return nil
}

// release ends the watchers and gives back what this process holds of the box,
// which may go on running.
func (b *box) release() {
	if b.end.released {
		return
	}
	b.end.released = true
	close(b.end.closing)
	if b.end.guest != nil {
		b.end.guest.close()
	}
	for _, p := range []*process{b.sentry, b.gofer} {
		if p != nil {
			p.close()
		}
	}
	b.end.watchers.Wait()
	b.held.close()
	b.held = nil
}
