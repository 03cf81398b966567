package kernel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// Create makes a slot. It is born closed: its rules are in force, and drop
// everything in both directions, before its interfaces come up.
func (n *Network) Create(ctx context.Context) (Slot, error) {
	if err := ctx.Err(); err != nil {
		return Slot{}, fmt.Errorf("create slot: %w", err)
	}
	slot, st, err := n.reserve()
	if err != nil {
		return Slot{}, fmt.Errorf("create slot: %w", err)
	}
	defer st.mu.Unlock()
	if err := n.build(slot); err != nil {
		err = fmt.Errorf("create slot %d: %w", slot.Index, err)
		return Slot{}, errors.Join(err, n.demolish(slot, st))
	}
	return slot, nil
}

// reserve picks a free number and returns its state locked. Numbers go round,
// so that an address rests for as long as possible before it has a new tenant.
func (n *Network) reserve() (Slot, *state, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.adopted {
		return Slot{}, nil, errNotAdopted
	}
	if n.next == 0 {
		n.next = 1 + rand.IntN(n.maxIndex())
	}
	for range n.maxIndex() {
		slot, err := n.slot(n.next)
		if err != nil {
			return Slot{}, nil, err
		}
		n.next = n.next%n.maxIndex() + 1
		_, err = os.Lstat(slot.NetNS)
		if n.slots[slot.Index] == nil && errors.Is(err, os.ErrNotExist) {
			st := &state{}
			st.mu.Lock()
			n.slots[slot.Index] = st
			return slot, st, nil
		}
	}
	return Slot{}, nil, ErrNoSlot
}

func (n *Network) build(s Slot) error {
	err := makeNamespace(s.NetNS, func() error {
		if err := quietIPv6("default"); err != nil {
			return err
		}
		return raiseLoopback()
	})
	if err != nil {
		return err
	}
	if err := makePair(s, n.mtu); err != nil {
		return err
	}
	plan, err := planSlot(s, nil, 0)
	if err != nil {
		return err
	}
	t := newTransaction()
	n.rules.add(t, plan)
	if err := n.rules.commit(t); err != nil {
		return fmt.Errorf("close the slot: %w", err)
	}
	if err := raiseHost(s); err != nil {
		return err
	}
	err = inNamespace(s.NetNS, func() error {
		if err := raiseInner(s); err != nil {
			return err
		}
		return awaitReady(innerIf, s.IP6)
	})
	if err != nil {
		return err
	}
	return awaitReady(s.HostIf, s.Gateway6)
}

// Destroy removes a slot and every trace of it. What runs in its namespace
// loses its network at once. The kernel takes long to delete interfaces; those
// of the slot, set down by then, vanish a moment after Destroy has returned, and
// with them its number becomes free. It is no error if there is no such slot.
func (n *Network) Destroy(ctx context.Context, s Slot) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("destroy slot %d: %w", s.Index, err)
	}
	st, err := n.hold(s)
	if errors.Is(err, ErrUnknownSlot) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("destroy slot %d: %w", s.Index, err)
	}
	if err := n.silence(s, st); err != nil {
		st.mu.Unlock()
		return fmt.Errorf("destroy slot %d: %w", s.Index, err)
	}
	n.removals.Go(func() {
		defer st.mu.Unlock()
		if err := n.vanish(s, st); err != nil {
			n.log.Error("a network slot that is not used any more is still there", "slot", s.Index, "error", err)
		}
	})
	return nil
}

// demolish takes down whatever there is of a slot; the caller holds its lock.
// After an error it can be called again.
func (n *Network) demolish(s Slot, st *state) error {
	if err := n.silence(s, st); err != nil {
		return err
	}
	return n.vanish(s, st)
}

// silence ends all that a slot does. The interface stops first and the rules go
// while it is down, so that nothing passes without them.
func (n *Network) silence(s Slot, st *state) error {
	if err := lower(s.HostIf); err != nil {
		return err
	}
	if err := n.removeRules(s, st.sets); err != nil {
		return err
	}
	// Nothing begins a flow any more: the address is clean for its next tenant. A
	// slot that was never open has none to end.
	if st.open {
		n.barrier.wait()
		if _, err := n.tracker.endDenied(n.layout, s, nil); err != nil {
			return err
		}
	}
	return removeNamespace(s.NetNS)
}

// vanish removes the interfaces of a silent slot and forgets it.
func (n *Network) vanish(s Slot, st *state) error {
	if err := removePair(s.HostIf); err != nil {
		return err
	}
	st.gone = true
	n.mu.Lock()
	delete(n.slots, s.Index)
	n.mu.Unlock()
	return nil
}

// removeRules deletes a slot's rules if there are any. The guard goes by
// itself: some kernels have deleted it together with its interface.
func (n *Network) removeRules(s Slot, sets []string) error {
	plan, err := planSlot(s, nil, 0)
	if err != nil {
		return err
	}
	guard, rest := newTransaction(), newTransaction()
	guard.deleteChain(netdevFamily, n.rules.table, plan.guard.name)
	n.rules.remove(rest, plan, sets)
	for _, t := range []*transaction{guard, rest} {
		if err := n.rules.commit(t); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove rules: %w", err)
		}
	}
	return nil
}
