package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// startTimeout bounds one create: a guest that has not answered by then never
// will.
const startTimeout = 30 * time.Second

// cleanupTimeout bounds taking back a failed create or a removal; it runs also
// when the caller has gone away.
const cleanupTimeout = 30 * time.Second

// Create makes a sandbox and returns once its policy is confirmed, its guest
// answers and its record is durable. On any error nothing of it remains.
func (n *Node) Create(ctx context.Context, spec sandbox.Spec) (store.Sandbox, error) {
	template, err := n.Templates.Resolve(ctx, spec.Template)
	if err != nil {
		return store.Sandbox{}, err
	}
	compiled, err := n.Compile(spec.Network)
	if err != nil {
		return store.Sandbox{}, err
	}
	if err := n.admit(spec.Team); err != nil {
		return store.Sandbox{}, err
	}
	n.quiet.disturb()
	defer n.quiet.disturb()
	record, err := n.create(ctx, spec, template, compiled)
	if err != nil {
		n.release(spec.Team)
		return store.Sandbox{}, fmt.Errorf("create sandbox: %w", err)
	}
	return record, nil
}

func (n *Node) create(ctx context.Context, spec sandbox.Spec, template store.Template, compiled *policy.Policy) (store.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		w, err := n.take(ctx, template)
		if err != nil {
			return store.Sandbox{}, err
		}
		record, err := n.complete(ctx, spec, template, compiled, w)
		if w.waited && errors.Is(err, sandbox.ErrGone) {
			// That was not the caller's fault, and there are others.
			n.Logger.Warn("a warm box had ended", "box", w.box.ID(), "error", err)
			continue
		}
		return record, err
	}
}

// complete makes a sandbox of a warm box, or gives box and slot back.
func (n *Node) complete(ctx context.Context, spec sandbox.Spec, template store.Template, compiled *policy.Policy, w warm) (_ store.Sandbox, err error) {
	record := n.newRecord(spec, template, w)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.takeBack(ctx, record.ID, w))
		}
	}()

	if record.Network, record.NetworkSecrets, err = n.seal(record.ID, spec.Network); err != nil {
		return store.Sandbox{}, err
	}
	// The record comes last: a server that dies before leaves a box and a slot
	// that nobody claims, and the next one removes them.
	if err := n.bring(ctx, record, spec.Env, template, compiled, w); err != nil {
		return store.Sandbox{}, err
	}
	if err := n.Store.CreateSandbox(ctx, record); err != nil {
		return store.Sandbox{}, err
	}
	n.publish(record, w.box, w.slot)
	n.Logger.Info("sandbox created", "sandbox", record.ID, "team", record.Team, "template", record.TemplateID, "end", record.EndAt)
	return record, nil
}

func (n *Node) newRecord(spec sandbox.Spec, template store.Template, w warm) store.Sandbox {
	now := time.Now().UTC()
	record := store.Sandbox{
		ID:             sandbox.NewID(),
		Team:           spec.Team,
		TemplateID:     template.ID,
		State:          sandbox.Running,
		StartedAt:      now,
		EndAt:          now.Add(spec.Timeout),
		Secure:         spec.Secure,
		Limits:         template.Limits,
		Metadata:       spec.Metadata,
		InternetAccess: spec.InternetAccess,
		Generation:     1,
		Ingress:        spec.Ingress,
		Runtime:        n.Runtime.Name(),
		Box:            w.box.ID(),
		Slot:           w.slot.Index,
	}
	if spec.Template != template.ID {
		record.Alias = spec.Template
	}
	if spec.Ingress.Private() {
		record.TrafficNonce = sandbox.NewNonce()
	}
	return record
}

// bring puts the policy in force and the template into the box, then tells the
// guest who it is. A slot is born closed: nothing passes, and the guest cannot be
// spoken to, before its policy is confirmed. When the box ends in the middle the
// error is sandbox.ErrGone.
func (n *Node) bring(ctx context.Context, record store.Sandbox, env map[string]string, template store.Template, p *policy.Policy, w warm) error {
	ctx, release := whileAlive(ctx, w.box)
	err := n.bringUp(ctx, record, env, template, p, w)
	return errors.Join(err, release())
}

// whileAlive returns a context that ends with the box, and the function that
// releases it, which returns sandbox.ErrGone in that case.
func whileAlive(ctx context.Context, box sandbox.Box) (context.Context, func() error) {
	ctx, cancel := context.WithCancelCause(ctx)
	gone := make(chan error, 1)
	go func() {
		_, err := box.Wait(ctx)
		if err == nil {
			err = sandbox.ErrGone
			cancel(err)
		}
		gone <- err
	}()
	return ctx, func() error {
		cancel(nil)
		if err := <-gone; errors.Is(err, sandbox.ErrGone) {
			return err
		}
		return nil
	}
}

func (n *Node) bringUp(ctx context.Context, record store.Sandbox, env map[string]string, template store.Template, p *policy.Policy, w warm) error {
	var steps errgroup.Group
	n.settle(w.slot, record, p) // before the first packet can come
	steps.Go(func() error {
		if _, err := n.Network.Apply(ctx, w.slot, p); err != nil {
			return fmt.Errorf("apply network policy: %w", err)
		}
		return nil
	})
	if w.template == "" {
		steps.Go(func() error { return n.start(ctx, &w, template) })
	}
	if err := steps.Wait(); err != nil {
		return err
	}
	err := n.guest.init(ctx, w.slot.IP4, api.GuestInit{
		AccessToken:    n.GuestToken(record).Reveal(),
		EnvVars:        withTemplateEnv(template.Env, env),
		DefaultUser:    template.User,
		DefaultWorkdir: template.Workdir,
		SandboxID:      record.ID,
		TemplateID:     record.TemplateID,
	})
	if err != nil {
		return fmt.Errorf("initialise guest: %w", err)
	}
	return nil
}

// publish makes a complete sandbox visible and arms its timeout.
func (n *Node) publish(record store.Sandbox, box sandbox.Box, slot kernel.Slot) {
	l := &live{box: box, slot: slot, done: make(chan struct{}), record: record, keys: n.keys(record)}
	// Timers whose time is over already wait until the sandbox can be found.
	n.mu.Lock()
	l.expiry = time.AfterFunc(time.Until(record.EndAt), func() { n.onTimer(func() { n.expire(record.ID) }) })
	l.grants = time.AfterFunc(time.Hour, func() { n.onTimer(func() { n.endGrants(record.ID) }) })
	l.armGrants()
	n.live[record.ID] = l
	n.mu.Unlock()
	n.bg.Go(func() { n.watch(record.ID, l) })
}

// takeBack removes what a failed create has made so far, whatever became of
// the caller's context.
func (n *Node) takeBack(ctx context.Context, id string, w warm) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	n.evict(w.slot, id)
	err := n.Store.DeleteSandbox(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return errors.Join(err, n.discard(ctx, w))
}
