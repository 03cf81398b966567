package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	sentry "gvisor.dev/gvisor/runsc/boot"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// watch notes when the sentry ends, for whatever reason, until release.
func (b *box) watch() {
	b.watched = true
	b.watchers.Go(func() {
		if err := b.sentry.wait(context.Background()); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				b.runtime.log.Error("cannot watch a box any longer", "box", b.id, "error", err)
			}
			return
		}
		b.exitMu.Lock()
		b.exit.OOM = b.group.oomKilled()
		b.exit.At = time.Now()
		b.exitMu.Unlock()
		close(b.ended)
	})
}

// watchGuest ends the box when the guest ends, until release: what is left
// then is an empty shell.
func (b *box) watchGuest() error {
	c, err := dialControl(b.controlPath())
	if err != nil {
		return err
	}
	b.waiting = c
	b.watchers.Go(func() {
		var ws unix.WaitStatus
		if err := c.call(context.Background(), sentry.ContMgrWait, guestContainer, nil, &ws); err != nil {
			return // the sentry has ended or the box was released
		}
		b.exitMu.Lock()
		b.exit.Status = exitStatus(ws)
		b.exitMu.Unlock()
		b.runtime.log.Warn("a guest has ended", "box", b.id, "status", exitStatus(ws), "stderr", b.guestWords())
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

// guestWords returns the beginning of what the guest wrote to standard error.
func (b *box) guestWords() string {
	if b.words == nil {
		return ""
	}
	buf := make([]byte, lastWords)
	n, _ := b.words.ReadAt(buf, 0) // what cannot be read is not shown
	text, _, _ := bytes.Cut(buf[:n], []byte{0})
	return string(text)
}

// Wait implements sandbox.Box.
func (b *box) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-b.ended:
	case <-b.closing:
		select {
		case <-b.ended:
		default:
			return sandbox.Exit{}, fmt.Errorf("wait for box %s: the runtime was closed", b.id)
		}
	case <-ctx.Done():
		return sandbox.Exit{}, fmt.Errorf("wait for box %s: %w", b.id, context.Cause(ctx))
	}
	b.exitMu.Lock()
	defer b.exitMu.Unlock()
	return b.exit, nil
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
	if !b.gone {
		if b.released {
			return errors.New("the runtime was closed")
		}
		if err := b.end(ctx); err != nil {
			return err
		}
		b.gone = true
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

// end kills the processes and waits until they are gone.
func (b *box) end(ctx context.Context) error {
	if b.gofer != nil {
		if err := b.gofer.kill(); err != nil {
			return err
		}
	}
	if b.sentry != nil {
		if err := b.sentry.kill(); err != nil {
			return err
		}
		if !b.watched {
			b.watch() // it was never finished
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
	if b.released {
		return
	}
	b.released = true
	close(b.closing)
	if b.waiting != nil {
		b.waiting.close()
	}
	for _, p := range []*process{b.sentry, b.gofer} {
		if p != nil {
			p.close()
		}
	}
	b.watchers.Wait()
	b.naming.close()
	b.naming = nil
	for _, f := range []*os.File{b.words, b.ring} {
		if f != nil {
			f.Close()
		}
	}
}
