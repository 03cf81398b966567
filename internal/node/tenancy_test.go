package node

import (
	"errors"
	"sync"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// rigFlows stands for the proxy: it cuts three flows on every update and notes
// what it was told.
type rigFlows struct {
	mu        sync.Mutex
	told      []egress.Tenant
	forgotten []string
}

const rigCut = 3

func (f *rigFlows) Reevaluate(sandbox string, next egress.Tenant) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sandbox != next.Sandbox {
		return -1
	}
	f.told = append(f.told, next)
	return rigCut
}

func (f *rigFlows) Forget(sandbox string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgotten = append(f.forgotten, sandbox)
	return 0
}

// tenant is who has the address of a record's slot.
func (r *rig) tenant(record store.Sandbox) egress.Tenant {
	r.t.Helper()
	t4, ok4 := r.tenants.Tenant(rigSlot(record.Slot).IP4)
	t6, ok6 := r.tenants.Tenant(rigSlot(record.Slot).IP6)
	if t4 != t6 || ok4 != ok6 {
		r.t.Errorf("the two addresses of slot %d belong to %+v and %+v", record.Slot, t4, t6)
	}
	return t4
}

// The rig itself checks that no slot opens or goes while its addresses belong
// to the wrong one; here it is who they belong to, and what flows are told.
func TestTenancyFollowsTheSandbox(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	if got := r.tenant(record); got.Sandbox != record.ID || got.Team != "a" || got.Generation != 1 || !allows(got.Policy) {
		t.Errorf("after the create: %+v", got)
	}
	receipt, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{})
	if err != nil {
		t.Fatal(err)
	}
	if receipt.Cut != r.applied+rigCut {
		t.Errorf("%d flows cut, want the kernel's %d and the proxy's %d", receipt.Cut, r.applied, rigCut)
	}
	got := r.tenant(record)
	if got.Sandbox != record.ID || got.Generation != 2 || allows(got.Policy) {
		t.Errorf("after the update: %+v", got)
	}
	if len(r.flows.told) != 1 || r.flows.told[0] != got {
		t.Errorf("flows were told %+v", r.flows.told)
	}
	if err := n.Kill(t.Context(), record.ID); err != nil {
		t.Fatal(err)
	}
	if got := r.tenant(record); got.Sandbox != "" {
		t.Errorf("after the kill: %+v", got)
	}
	if len(r.flows.forgotten) != 1 || r.flows.forgotten[0] != record.ID {
		t.Errorf("forgotten: %v", r.flows.forgotten)
	}
}

// An update that fails leaves the old policy with the proxy as well.
func TestFailedUpdateLeavesTheTenant(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	r.setBroken("update", true)
	if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{}); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	if got := r.tenant(record); got.Sandbox != record.ID || got.Generation != 1 || !allows(got.Policy) {
		t.Errorf("the tenant is %+v", got)
	}
	for _, told := range r.flows.told {
		if !allows(told.Policy) {
			t.Errorf("flows were told %+v", told)
		}
	}
}

// Where the old policy cannot be put back the sandbox is closed, everywhere.
func TestUpdateThatCannotBeTakenBackCloses(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	r.setBroken("apply", true)
	if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{}); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	if got := r.tenant(record); got.Sandbox != record.ID || got.Policy != nil {
		t.Errorf("the tenant is %+v", got)
	}
	if len(r.flows.told) != 1 || r.flows.told[0].Policy != nil {
		t.Errorf("flows were told %+v", r.flows.told)
	}
}

// A create that fails leaves addresses that are nobody's.
func TestFailedCreateLeavesNoTenant(t *testing.T) {
	for _, step := range []string{"apply", "start", "init", "record"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			n := r.open()
			defer n.Close()
			r.setBroken(step, true)
			if _, err := n.Create(t.Context(), spec("a")); err == nil {
				t.Fatal("create succeeded")
			}
			if got := r.tenant(store.Sandbox{Slot: 1}); got.Sandbox != "" || len(r.flows.forgotten) != 1 {
				t.Errorf("%+v, forgotten %v", got, r.flows.forgotten)
			}
		})
	}
}

// A new server knows its tenants before it lets the kernel adopt them (which
// the rig checks), with the generation that is stored. One whose document it
// cannot read is closed.
func TestTenancyIsAdopted(t *testing.T) {
	r := newRig(t)
	first := r.open()
	kept, broken := create(t, first, "a"), create(t, first, "a")
	if _, err := first.SetNetwork(t.Context(), kept.ID, sandbox.NetworkChange{}); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := r.store.UpdateSandbox(t.Context(), broken.ID, func(s *store.Sandbox) error {
		s.Network.DenyOut = []string{"nonsense"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	second := r.open()
	defer second.Close()
	if got := r.tenant(kept); got.Sandbox != kept.ID || got.Team != "a" || got.Generation != 2 || got.Policy == nil {
		t.Errorf("adopted as %+v", got)
	}
	if got := r.tenant(broken); got.Sandbox != broken.ID || got.Policy != nil {
		t.Errorf("what cannot be read is adopted as %+v", got)
	}
}

// A removal that failed at its very end is tried again when another sandbox
// may have the slot already.
func TestLateRemovalLeavesTheNextTenantAlone(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	gone := create(t, n, "a")
	r.setBroken("delete", true)
	if err := n.Kill(t.Context(), gone.ID); !errors.Is(err, errBroken) {
		t.Fatalf("kill: %v", err)
	}
	r.setBroken("delete", false)
	next := create(t, n, "b")
	if next.Slot != gone.Slot {
		t.Fatalf("the next tenant has slot %d, want %d", next.Slot, gone.Slot)
	}
	if err := n.Kill(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	if got := r.tenant(next); got.Sandbox != next.ID {
		t.Errorf("its addresses belong to %+v", got)
	}
	wantTraces(t, r, "box "+next.Box+", record "+next.ID+", slot 1")
}
