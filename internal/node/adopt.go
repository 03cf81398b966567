package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// tenant is a recorded sandbox that was found running.
type tenant struct {
	record store.Sandbox
	box    sandbox.Box
	slot   kernel.Slot
}

// adopt takes over the sandboxes that outlived an earlier server and removes
// what is left of everything else: boxes, slots and records of creates and
// kills that were cut short, and the old warm pool.
func (n *Node) adopt(ctx context.Context) error {
	records, err := n.Store.Sandboxes(ctx, "")
	if err != nil {
		return err
	}
	var found []tenant
	for _, record := range records {
		t, err := n.locate(ctx, record)
		if err != nil {
			n.Logger.Warn("sandbox is not adopted", "sandbox", record.ID, "cause", err)
			if err := n.Store.DeleteSandbox(ctx, record.ID); err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			continue
		}
		found = append(found, t)
	}
	if err := n.dropExpired(ctx, found); err != nil {
		return err
	}
	if err := n.enforce(ctx, found); err != nil {
		return err
	}
	if err := n.sweep(ctx, found); err != nil {
		return err
	}
	for _, t := range found {
		n.teams[t.record.Team]++
		n.admitted++
		n.publish(t.record, t.box, t.slot)
		n.Logger.Info("sandbox adopted", "sandbox", t.record.ID, "team", t.record.Team)
	}
	return nil
}

// locate finds the parts of a recorded sandbox. An error says why it cannot be
// adopted.
func (n *Node) locate(ctx context.Context, record store.Sandbox) (tenant, error) {
	switch {
	case record.State != sandbox.Running:
		return tenant{}, fmt.Errorf("it was %s", record.State)
	case record.Runtime != n.Runtime.Name():
		return tenant{}, fmt.Errorf("it runs on %s, this server on %s", record.Runtime, n.Runtime.Name())
	case !record.EndAt.After(time.Now()):
		return tenant{}, errors.New("its time was over")
	}
	box, err := n.Runtime.Load(ctx, record.Box)
	if err != nil {
		return tenant{}, fmt.Errorf("find its box: %w", err)
	}
	slot, err := n.Network.Load(record.Slot)
	if err != nil {
		return tenant{}, fmt.Errorf("find its network: %w", err)
	}
	return tenant{record: record, box: box, slot: slot}, nil
}

// enforce puts the stored policy of every adopted sandbox in force, in the
// kernel all in one step. A document this server cannot compile closes its sandbox.
func (n *Node) enforce(ctx context.Context, found []tenant) error {
	tenants := make([]kernel.Tenant, len(found))
	for i, t := range found {
		compiled, err := n.policyOf(t.record)
		if err != nil {
			n.Logger.Error("stored network policy is not usable, sandbox is closed", "sandbox", t.record.ID, "error", err)
			compiled = nil
		}
		n.settle(t.slot, t.record, compiled)
		tenants[i] = kernel.Tenant{Slot: t.slot, Policy: compiled}
	}
	return n.Network.Adopt(ctx, tenants)
}

// sweep removes every box and slot that no adopted sandbox claims; boxes first,
// so that nothing runs in a namespace that goes.
func (n *Node) sweep(ctx context.Context, found []tenant) error {
	claimed := make(map[string]bool, len(found))
	slots := make([]kernel.Slot, 0, len(found))
	for _, t := range found {
		claimed[t.record.Box] = true
		slots = append(slots, t.slot)
	}
	boxes, err := n.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list boxes: %w", err)
	}
	for _, id := range boxes {
		if claimed[id] {
			continue
		}
		if err := n.Runtime.Remove(ctx, id); err != nil {
			return fmt.Errorf("remove orphaned box %s: %w", id, err)
		}
		n.Logger.Info("orphaned box removed", "box", id)
	}
	if err := n.Network.Sweep(ctx, slots); err != nil {
		return fmt.Errorf("remove orphaned slots: %w", err)
	}
	return nil
}
