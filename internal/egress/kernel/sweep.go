package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
)

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
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("sweep slots: %w", err)
		}
		if err := n.sweepSlot(index); err != nil {
			return fmt.Errorf("sweep slot %d: %w", index, err)
		}
		n.log.Info("orphaned network slot removed", "slot", index)
	}
	return nil
}

func (n *Network) sweepSlot(index int) error {
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
	st, err := n.hold(s)
	if errors.Is(err, ErrUnknownSlot) { // somebody else was faster
		return nil
	}
	if err != nil {
		return err
	}
	defer st.mu.Unlock()
	return n.demolish(s, st)
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
	if err := errors.Join(n.rules.clear(""), n.removeDoors(), n.removeFences()); err != nil {
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
