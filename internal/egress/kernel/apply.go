package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Apply puts a policy in force for a slot; a nil policy closes it in both
// directions. The rules change in one step, or, on error, not at all. Flows
// that the new policy denies are ended, the others live on. When Apply returns
// without error the kernel has confirmed the policy and no denied flow is left.
//
// An error that occurs after the rules changed says so; the new rules are in
// force then, and Apply can be repeated.
func (n *Network) Apply(ctx context.Context, s Slot, p *policy.Policy) (Receipt, error) {
	if err := ctx.Err(); err != nil {
		return Receipt{}, fmt.Errorf("apply policy to slot %d: %w", s.Index, err)
	}
	st, err := n.hold(s)
	if err != nil {
		return Receipt{}, fmt.Errorf("apply policy to slot %d: %w", s.Index, err)
	}
	defer st.mu.Unlock()
	wasOpen := st.open
	st.open = wasOpen || p != nil // also when it is not certain what happened
	if err := n.enforce(s, st, p); err != nil {
		return Receipt{}, fmt.Errorf("apply policy to slot %d: %w", s.Index, err)
	}
	if !wasOpen { // there are no flows
		return Receipt{}, nil
	}
	n.barrier.wait()
	cut, err := n.tracker.endDenied(n.layout, s, p)
	if err != nil {
		return Receipt{}, fmt.Errorf("apply policy to slot %d: the rules are in force, but not all flows are ended: %w", s.Index, err)
	}
	st.open = p != nil
	return Receipt{Cut: cut}, nil
}

// CloseSlot lets nothing pass in either direction any more and ends all flows.
func (n *Network) CloseSlot(ctx context.Context, s Slot) error {
	_, err := n.Apply(ctx, s, nil)
	return err
}

// enforce swaps the rules of a slot in one transaction. The sets they need are
// filled by another one before; if the swap fails they are not in use, and the
// next one takes them away.
func (n *Network) enforce(s Slot, st *state, p *policy.Policy) error {
	if err := n.checkNever(p); err != nil {
		return err
	}
	st.generation++
	plan, err := planSlot(s, p, st.generation)
	if err != nil {
		return err
	}
	if len(plan.sets) > 0 {
		t := newTransaction()
		n.rules.addSets(t, plan)
		if err := n.rules.commit(t); err != nil {
			return err
		}
	}
	old := st.sets
	st.sets = append(plan.setNames(), old...)
	t := newTransaction()
	n.rules.replace(t, plan, old)
	if err := n.rules.commit(t); err != nil {
		return err
	}
	st.sets = plan.setNames()
	return n.rules.confirm(plan)
}

// checkNever keeps Decide and the kernel from disagreeing about what is never
// reachable.
func (n *Network) checkNever(p *policy.Policy) error {
	if p != nil && !p.Never().Equal(n.never) {
		return errors.New("the policy was compiled with another table of never-reachable addresses")
	}
	return nil
}

// Adopt takes over the slots that an earlier process left running. All rules
// of the instance are replaced by those of this process; at every moment the
// old, the new or both are in force, so nothing opens that should not, and
// flows that stay allowed see nothing of it. Slots that are nobody's are
// closed; Sweep removes them.
func (n *Network) Adopt(ctx context.Context, tenants []Tenant) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("adopt slots: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.slots) > 0 {
		return errors.New("adopt slots: there are slots in use already")
	}
	plans, err := n.planAll(tenants)
	if err != nil {
		return fmt.Errorf("adopt slots: %w", err)
	}
	if err := n.rules.renew(n.barrier, planBase(n.layout, n.never), plans); err != nil {
		return fmt.Errorf("adopt slots: %w", err)
	}
	n.adopted = true
	for _, plan := range plans {
		n.slots[plan.slot.Index] = &state{open: true, sets: plan.setNames()} // open as far as we know
	}
	n.barrier.wait()
	if err := n.tracker.endOthers(n.layout, tenants); err != nil {
		return fmt.Errorf("adopt slots: the rules are in force, but not all flows are ended: %w", err)
	}
	return nil
}

// planAll plans every slot that has an interface: as its tenant wants it, or
// closed.
func (n *Network) planAll(tenants []Tenant) ([]slotPlan, error) {
	policies := map[int]*policy.Policy{}
	for _, t := range tenants {
		loaded, err := n.Load(t.Slot.Index)
		if err != nil {
			return nil, err
		}
		if loaded.HostIf != t.Slot.HostIf || loaded.IP4 != t.Slot.IP4 || loaded.IP6 != t.Slot.IP6 {
			return nil, fmt.Errorf("slot %d: %w: it has other addresses", t.Slot.Index, ErrUnknownSlot)
		}
		if err := n.checkNever(t.Policy); err != nil {
			return nil, fmt.Errorf("slot %d: %w", t.Slot.Index, err)
		}
		policies[t.Slot.Index] = t.Policy
	}
	found, err := n.interfaces()
	if err != nil {
		return nil, err
	}
	var plans []slotPlan
	for index := range found {
		s, err := n.slot(index)
		if err != nil {
			return nil, err
		}
		plan, err := planSlot(s, policies[index], 0)
		if err != nil {
			return nil, err
		}
		plans = append(plans, plan)
	}
	return plans, nil
}
