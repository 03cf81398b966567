package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	sentry "gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/config"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// box implements sandbox.Box.
type box struct {
	runtime *Runtime
	id, dir string
	conf    *config.Config
	flags   []string // the same for a command line

	// Set before anyone else knows the box.
	group  *group   // nil where the machine has no cgroups
	sentry *process // nil until it was executed

	mu      sync.Mutex // held by Start, Destroy and Runtime.Close
	limits  sandbox.Limits
	gofer   *process // nil without a directory root
	started bool     // or its start has failed
	held    *held    // nil when the box was adopted, or this process let go of it
	end     ending
}

var _ sandbox.Box = (*box)(nil)

// describe returns a box of which nothing exists yet.
func (r *Runtime) describe(id string, limits sandbox.Limits) (*box, error) {
	b := &box{runtime: r, id: id, dir: r.boxDir(id), limits: limits, end: newEnding()}
	var err error
	b.conf, b.flags, err = newConfig(b.dir)
	return b, err
}

// ID implements sandbox.Box.
func (b *box) ID() string { return b.id }

// boot makes everything that Prepare promises. Nobody else knows the box yet.
func (b *box) boot(ctx context.Context, netns string) error {
	if b.runtime.noGroups == nil {
		var err error
		if b.group, err = findGroup(b.runtime.groupPath(b.id)); err != nil {
			return err
		}
		if err := b.group.install(b.limits); err != nil {
			return err
		}
	}
	ns, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	if err := b.bootSentry(ctx, b.runtime.pauseImage(), ns); err != nil {
		return err
	}
	stop := b.endWith(ctx)
	defer stop()
	if err := b.startPause(ctx, ns); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	if err := b.save(); err != nil {
		return err
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return nil
}

// startPause hands the sentry its network and runs the pause container.
func (b *box) startPause(ctx context.Context, ns *os.File) error {
	w, err := takeNetwork(ns, b.conf)
	if err != nil {
		return err
	}
	defer w.close()
	c, err := dialControl(b.controlPath())
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.call(ctx, sentry.ContMgrSetNetworkArgs, w.args, w.sockets, nil); err != nil {
		return err
	}
	return c.call(ctx, sentry.ContMgrRootContainerStart, b.id, nil, nil)
}

// endWith kills the sentry when ctx is done, which makes calls to it fail.
func (b *box) endWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		if err := b.sentry.kill(); err != nil {
			b.runtime.log.Error("cannot end a box whose caller has gone", "box", b.id, "error", err)
		}
	})
}

// Start implements sandbox.Box. When it fails the box is of no use any more.
func (b *box) Start(ctx context.Context, spec sandbox.StartSpec) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.checkStart(spec); err != nil {
		return fmt.Errorf("start box %s: %w", b.id, err)
	}
	stop := b.endWith(ctx)
	defer stop()
	if err := b.start(ctx, spec); err != nil {
		return errors.Join(fmt.Errorf("start box %s: %w %s", b.id, err, b.held.said()), context.Cause(ctx))
	}
	if !stop() {
		return fmt.Errorf("start box %s: %w", b.id, context.Cause(ctx))
	}
	return nil
}

// checkStart refuses what cannot be started, before anything is touched.
func (b *box) checkStart(s sandbox.StartSpec) error {
	switch {
	case b.end.released:
		return sandbox.ErrGone
	case b.started:
		return errors.New("it was started before")
	case b.held == nil:
		return errors.New("it was prepared by an earlier server")
	case !s.Limits.SameMemory(b.limits):
		return fmt.Errorf("limits of %d MiB memory and %d MiB disk differ from the %d and %d it was prepared with",
			s.Limits.MemoryMB, s.Limits.DiskMB, b.limits.MemoryMB, b.limits.DiskMB)
	}
	return checkStart(s)
}

func (b *box) start(ctx context.Context, spec sandbox.StartSpec) error {
	b.started = true
	if spec.Limits != b.limits {
		b.limits = spec.Limits
		if err := b.group.update(b.limits); err != nil {
			return err
		}
	}
	named := make(chan error, 1)
	go func() { named <- b.held.nameBox(ctx, spec.Hostname) }()
	err := b.startGuest(ctx, spec)
	if err = errors.Join(err, <-named); err != nil {
		return err
	}
	if err := b.save(); err != nil {
		return err
	}
	return b.watchGuest()
}

// startGuest adds the container with the template and runs the guest in it.
func (b *box) startGuest(ctx context.Context, s sandbox.StartSpec) error {
	spec := guestSpec(b.id, b.dir, s)
	mounts := guestMountConf(s.Root, s.Limits.DiskMB)
	backing, err := b.guestFiles(s.Root.Image, s.Guest.Image, spec, mounts)
	if err != nil {
		return err
	}
	defer closeAll(backing)
	// Standard input is empty and standard output takes nothing.
	silence, err := fixedFile("silence", 0)
	if err != nil {
		return err
	}
	defer silence.Close()
	c, err := dialControl(b.controlPath())
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.call(ctx, sentry.ContMgrCreateSubcontainer, sentry.CreateArgs{CID: guestContainer}, nil, nil); err != nil {
		return err
	}
	return c.call(ctx, sentry.ContMgrStartSubcontainer, sentry.StartArgs{
		Spec: spec, Conf: b.conf, CID: guestContainer, GoferMountConfs: mounts,
	}, append([]*os.File{silence, silence, b.held.guestWords}, backing...), nil)
}
