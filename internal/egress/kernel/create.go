package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
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
	return inNamespace(s.NetNS, func() error { return raiseInner(s) })
}

// Destroy removes a slot and every trace of it. What runs in its namespace
// loses its network at once. It is no error if there is no such slot.
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
	defer st.mu.Unlock()
	if err := n.demolish(s, st); err != nil {
		return fmt.Errorf("destroy slot %d: %w", s.Index, err)
	}
	return nil
}

// demolish takes down whatever there is of a slot; the caller holds its lock.
// The interface stops first and the rules go while it is down, so that nothing
// passes without them. After an error it can be called again.
func (n *Network) demolish(s Slot, st *state) error {
	if err := lower(s.HostIf); err != nil {
		return err
	}
	if err := n.removeRules(s, st.sets); err != nil {
		return err
	}
	if err := removePair(s.HostIf); err != nil {
		return err
	}
	// The interface is gone, so nothing begins a flow any more: the address is
	// clean for its next tenant. A slot that was never open has none to end.
	if st.open {
		if _, err := n.tracker.endDenied(s, nil); err != nil {
			return err
		}
	}
	if err := removeNamespace(s.NetNS); err != nil {
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

// Load finds a slot by its number, also one that an earlier process made. It
// returns ErrUnknownSlot if any part of it is missing.
func (n *Network) Load(index int) (Slot, error) {
	s, err := n.slot(index)
	if err != nil {
		return Slot{}, fmt.Errorf("load slot: %w: %w", ErrUnknownSlot, err)
	}
	if !isNamespace(s.NetNS) {
		return Slot{}, fmt.Errorf("load slot %d: %w: its namespace is gone", index, ErrUnknownSlot)
	}
	link, err := netlink.LinkByName(s.HostIf)
	if isNoLink(err) {
		return Slot{}, fmt.Errorf("load slot %d: %w: its interface is gone", index, ErrUnknownSlot)
	}
	if err != nil {
		return Slot{}, fmt.Errorf("load slot %d: %w", index, err)
	}
	if link.Type() != "veth" || link.Attrs().HardwareAddr.String() != s.GatewayMAC.String() {
		return Slot{}, fmt.Errorf("load slot %d: %w: %s is another interface", index, ErrUnknownSlot, s.HostIf)
	}
	return s, nil
}

// Sweep removes every slot of this instance, whole or in pieces, that is not
// to be kept.
func (n *Network) Sweep(ctx context.Context, keep []Slot) error {
	traces, err := n.traces()
	if err != nil {
		return fmt.Errorf("sweep slots: %w", err)
	}
	for _, s := range keep {
		delete(traces, s.Index)
	}
	for _, index := range slices.Sorted(maps.Keys(traces)) {
		if err := n.sweepSlot(ctx, index); err != nil {
			return fmt.Errorf("sweep slots: %w", err)
		}
		n.log.Info("orphaned network slot removed", "slot", index)
	}
	return nil
}

func (n *Network) sweepSlot(ctx context.Context, index int) error {
	s, err := n.slot(index)
	if err != nil {
		return err
	}
	n.mu.Lock()
	adopted := n.adopted
	if adopted && n.slots[index] == nil {
		n.slots[index] = &state{} // pieces without rules are destroyed alike
	}
	n.mu.Unlock()
	return n.Destroy(ctx, s)
}

// Uninstall removes all slots, used or not, and the tables. Settings of the
// kernel (forwarding) stay as they are. The Network is still to be closed.
func (n *Network) Uninstall(ctx context.Context) error {
	n.mu.Lock()
	n.adopted = true // whoever left rules, all of them go
	n.mu.Unlock()
	if err := n.Sweep(ctx, nil); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.adopted = false // until somebody lays tables again
	if err := errors.Join(n.rules.clear(""), n.removeFences()); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	return nil
}

// traces finds the numbers of all slots of which anything is left.
func (n *Network) traces() (map[int]bool, error) {
	found, err := n.interfaces()
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(n.stateDir)
	if err != nil {
		return nil, fmt.Errorf("read the state directory: %w", err)
	}
	for _, f := range files {
		if index, ok := n.indexOfFile(f.Name()); ok {
			found[index] = true
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for index := range n.slots {
		found[index] = true
	}
	return found, nil
}

// interfaces finds the numbers of all slots that have a host interface.
func (n *Network) interfaces() (map[int]bool, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	found := map[int]bool{}
	for _, l := range links {
		if index, ok := n.indexOfIf(l.Attrs().Name); ok {
			found[index] = true
		}
	}
	return found, nil
}
