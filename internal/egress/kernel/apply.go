package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

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
	if err := n.enforce(s, p); err != nil {
		return Receipt{}, fmt.Errorf("apply policy to slot %d: %w", s.Index, err)
	}
	if !st.open { // it was closed, so there are no flows
		st.open = p != nil
		return Receipt{}, nil
	}
	cut, err := cutSlot(s, p)
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

func (n *Network) enforce(s Slot, p *policy.Policy) error {
	if err := n.checkNever(p); err != nil {
		return err
	}
	plan, err := planSlot(n.layout, s, p)
	if err != nil {
		return err
	}
	t := newTransaction()
	n.rules.replace(t, plan)
	if err := n.rules.commit(t); err != nil {
		return err
	}
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

// confirm reads back that the rules of a plan are the ones in force.
func (r *rules) confirm(p slotPlan) error {
	table := &nftables.Table{Name: r.table, Family: nftables.TableFamilyINet}
	got, err := (&nftables.Conn{}).GetRules(table, &nftables.Chain{Name: p.out.name})
	if err != nil {
		return fmt.Errorf("read back the rules: %w", err)
	}
	if len(got) != len(p.out.rules) {
		return fmt.Errorf("read back the rules: the kernel has %d, want %d", len(got), len(p.out.rules))
	}
	for _, rule := range got {
		if comment, _ := userdata.GetString(rule.UserData, userdata.TypeComment); comment != p.digest() {
			return fmt.Errorf("read back the rules: they are of %q, want %q", comment, p.digest())
		}
	}
	return nil
}

// cutSlot ends the flows of a slot that a policy denies, and all of them if
// there is none. It returns how many there were.
func cutSlot(s Slot, p *policy.Policy) (int, error) {
	waitForPackets()
	cut := 0
	for _, a := range []netip.Addr{s.IP4, s.IP6} {
		found, err := flowsFrom(a)
		if err != nil {
			return cut, err
		}
		if p == nil {
			in, err := flowsTo(a)
			if err != nil {
				return cut, err
			}
			found = append(found, in...)
		}
		n, err := endDenied(found, p)
		cut += n
		if err != nil {
			return cut, err
		}
	}
	return cut, nil
}

func endDenied(flows []tracked, p *policy.Policy) (int, error) {
	cut := 0
	for _, c := range flows {
		if p.Decide(c.flow()).Verdict == policy.Allow {
			continue
		}
		if err := c.end(); err != nil {
			return cut, err
		}
		cut++
	}
	return cut, nil
}

// waitForPackets returns when every packet that was judged by earlier rules
// has been dealt with, so that none of them can still begin a flow. The kernel
// handles a packet inside one RCU section; the barrier waits for all of those.
func waitForPackets() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		// Not on offer (nohz_full, seccomp). A packet takes microseconds.
		time.Sleep(20 * time.Millisecond)
	}
}

// Adopt takes over the slots that an earlier process left running. All rules
// of the instance are replaced by those of this process in one step: at no
// moment is a slot open that should not be, and flows that stay allowed see
// nothing of it. Slots that are nobody's are closed; Sweep removes them.
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
	t := newTransaction()
	if err := n.rules.deleteAll(t); err != nil {
		return fmt.Errorf("adopt slots: %w", err)
	}
	n.rules.lay(t, planBase(n.layout, n.never))
	for _, plan := range plans {
		n.rules.add(t, plan)
	}
	if err := n.rules.commit(t); err != nil {
		return fmt.Errorf("adopt slots: %w", err)
	}
	n.adopted = true
	for index := range plans {
		n.slots[index] = &state{open: true} // until told otherwise
	}
	if err := n.cutAll(tenants); err != nil {
		return fmt.Errorf("adopt slots: the rules are in force, but not all flows are ended: %w", err)
	}
	return nil
}

// planAll plans every slot that has an interface: as its tenant wants it, or
// closed.
func (n *Network) planAll(tenants []Tenant) (map[int]slotPlan, error) {
	policies := map[int]*policy.Policy{}
	for _, t := range tenants {
		if _, err := n.Load(t.Slot.Index); err != nil {
			return nil, err
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
	plans := map[int]slotPlan{}
	for index := range found {
		s, err := n.slot(index)
		if err != nil {
			return nil, err
		}
		if plans[index], err = planSlot(n.layout, s, policies[index]); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

// cutAll ends the flows begun from slots that their policies deny; without a
// policy that is all of them.
func (n *Network) cutAll(tenants []Tenant) error {
	waitForPackets()
	policies := map[netip.Addr]*policy.Policy{}
	for _, t := range tenants {
		policies[t.Slot.IP4], policies[t.Slot.IP6] = t.Policy, t.Policy
	}
	for _, family := range []netip.Prefix{n.range4, n.range6} {
		found, err := flowsOf(family.Addr())
		if err != nil {
			return err
		}
		for _, c := range found {
			if !family.Contains(c.src) {
				continue
			}
			if _, err := endDenied([]tracked{c}, policies[c.src]); err != nil {
				return err
			}
		}
	}
	return nil
}
