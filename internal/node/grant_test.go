package node

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// closed makes a sandbox that may reach nothing.
func closed(t *testing.T, n *Node) store.Sandbox {
	t.Helper()
	s := spec("a")
	s.Network = policy.Document{}
	record, err := n.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// reaches says whether a sandbox may reach an address: whether the kernel or who
// speaks for the sandbox lets it.
func (r *rig) reaches(record store.Sandbox, addr string) bool {
	r.t.Helper()
	flow := policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(netip.MustParseAddr(addr), 443)}
	tenant, _ := r.tenants.Tenant(rigSlot(record.Slot).IP4)
	return r.policy(record.Slot).Decide(flow).Verdict == policy.Allow || tenant.Policy.Decide(flow).Verdict == policy.Allow
}

func grant(t *testing.T, n *Node, id, entry string, length time.Duration) sandbox.Grant {
	t.Helper()
	g, _, err := n.Grant(t.Context(), id, []string{entry}, time.Now().Add(length))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGrantEndsByItself(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := closed(t, n)
	grant(t, n, record.ID, "8.8.8.8", time.Hour)
	brief := grant(t, n, record.ID, "1.1.1.1", 2*time.Second)
	if !r.reaches(record, "1.1.1.1") || !r.reaches(record, "8.8.8.8") || r.reaches(record, "9.9.9.9") {
		t.Error("the grants are not in force")
	}
	eventually(t, func() bool { return !r.reaches(record, "1.1.1.1") })
	if early := time.Until(brief.ExpiresAt); early > 0 {
		t.Errorf("it ended %v too early", early)
	}
	if !r.reaches(record, "8.8.8.8") {
		t.Error("the other grant has ended too")
	}
	eventually(t, func() bool {
		stored, err := r.store.Sandbox(t.Context(), record.ID)
		return err == nil && len(stored.Grants) == 1 && stored.Generation == 4
	})
}

func TestRevoke(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := closed(t, n)
	g := grant(t, n, record.ID, "1.1.1.1", time.Hour)
	receipt, err := n.Revoke(t.Context(), record.ID, g.ID)
	if err != nil || receipt.Generation != 3 || receipt.Cut == 0 {
		t.Errorf("%+v, %v", receipt, err)
	}
	if r.reaches(record, "1.1.1.1") {
		t.Error("it is still in force")
	}
	if _, err := n.Revoke(t.Context(), record.ID, g.ID); !errors.Is(err, sandbox.ErrNoGrant) {
		t.Errorf("again: %v", err)
	}
	if _, err := n.Revoke(t.Context(), "inone", g.ID); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("of another sandbox: %v", err)
	}
}

// A grant whose end finds the kernel or the store broken ends all the same.
func TestGrantEndsDespiteFailures(t *testing.T) {
	for _, step := range []string{"apply", "update"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			n := r.open()
			defer n.Close()
			record := closed(t, n)
			grant(t, n, record.ID, "1.1.1.1", 50*time.Millisecond)
			r.setBroken(step, true)
			if step == "update" { // the kernel at least can be told
				eventually(t, func() bool { return !r.reaches(record, "1.1.1.1") })
			}
			time.Sleep(60 * time.Millisecond) // past the end
			r.setBroken(step, false)
			n.endGrants(record.ID) // what the timer does again
			if r.reaches(record, "1.1.1.1") {
				t.Error("it is still in force")
			}
			if stored, err := r.store.Sandbox(t.Context(), record.ID); err != nil || len(stored.Grants) != 0 {
				t.Errorf("stored: %+v, %v", stored.Grants, err)
			}
		})
	}
}

// Grants survive a restart, and those that were over meanwhile are not in
// force for a moment.
func TestGrantsSurviveARestart(t *testing.T) {
	r := newRig(t)
	n := r.open()
	record := closed(t, n)
	grant(t, n, record.ID, "8.8.8.8", time.Hour)
	soon := grant(t, n, record.ID, "9.9.9.9", 8*time.Second)
	brief := grant(t, n, record.ID, "1.1.1.1", 2*time.Second)
	n.Close() // no timer runs from here
	time.Sleep(time.Until(brief.ExpiresAt))
	if !r.reaches(record, "1.1.1.1") {
		t.Fatal("it ended before the restart")
	}
	n = r.open()
	defer n.Close()
	if r.reaches(record, "1.1.1.1") || !r.reaches(record, "8.8.8.8") {
		t.Error("after the restart the wrong grants are in force")
	}
	stored, err := r.store.Sandbox(t.Context(), record.ID)
	if err != nil || len(stored.Grants) != 2 || stored.Generation != 5 {
		t.Errorf("stored: %+v, %v", stored, err)
	}
	if !r.reaches(record, "9.9.9.9") && time.Now().Before(soon.ExpiresAt) {
		t.Error("a grant that is not over has ended")
	}
	eventually(t, func() bool { return !r.reaches(record, "9.9.9.9") }) // the timers run again
}

// Where there is no room to store that a grant is over, it is over all the same
// before the new server is there, and stored as such as soon as there is room.
func TestGrantIsOverOnAFullDisk(t *testing.T) {
	r := newRig(t)
	n := r.open()
	record := closed(t, n)
	brief := grant(t, n, record.ID, "1.1.1.1", 2*time.Second)
	n.Close()
	time.Sleep(time.Until(brief.ExpiresAt))
	if !r.reaches(record, "1.1.1.1") {
		t.Fatal("it ended before the restart")
	}
	r.setBroken("disk full", true)
	n = r.open()
	defer n.Close()
	if r.reaches(record, "1.1.1.1") {
		t.Error("it is in force after the restart")
	}
	r.setBroken("disk full", false)
	n.endGrants(record.ID) // what the timer does again
	if stored, err := r.store.Sandbox(t.Context(), record.ID); err != nil || len(stored.Grants) != 0 {
		t.Errorf("stored: %+v, %v", stored.Grants, err)
	}
}

// What cannot be enforced is not granted, and a failure leaves nothing behind.
func TestGrantFailsWhole(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := closed(t, n)
	until := time.Now().Add(time.Hour)
	var wrong *policy.EntryError
	if _, _, err := n.Grant(t.Context(), record.ID, []string{"8.8.8.8", "300.1.1.1"}, until); !errors.As(err, &wrong) || !strings.Contains(wrong.Entry, "300.1.1.1") {
		t.Errorf("a wrong entry: %v", err)
	}
	for _, step := range []string{"apply", "update"} {
		r.setBroken(step, true)
		if _, _, err := n.Grant(t.Context(), record.ID, []string{"8.8.8.8"}, until); err == nil {
			t.Errorf("granted with a broken %s", step)
		}
		r.setBroken(step, false)
	}
	// The kernel was told to close where it could not go back.
	if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{}); err != nil {
		t.Fatal(err)
	}
	if r.reaches(record, "8.8.8.8") {
		t.Error("a grant that failed is in force")
	}
	for range sandbox.MaxGrants {
		grant(t, n, record.ID, "8.8.8.8", time.Hour)
	}
	if _, _, err := n.Grant(t.Context(), record.ID, []string{"8.8.8.8"}, until); !errors.Is(err, sandbox.ErrGrants) {
		t.Errorf("one more: %v", err)
	}
}

func TestSetNetworkAndGrants(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := closed(t, n)
	grant(t, n, record.ID, "8.8.8.8", time.Hour)
	stored, err := r.store.Sandbox(t.Context(), record.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{IfGeneration: stored.Generation + 1}); !errors.Is(err, sandbox.ErrGeneration) {
		t.Errorf("for another generation: %v", err)
	}
	keep := sandbox.NetworkChange{Document: policy.Document{AllowOut: []string{"1.1.1.1"}}, KeepGrants: true, IfGeneration: stored.Generation}
	if _, err := n.SetNetwork(t.Context(), record.ID, keep); err != nil {
		t.Fatal(err)
	}
	if !r.reaches(record, "1.1.1.1") || !r.reaches(record, "8.8.8.8") {
		t.Error("the kept grant is not in force")
	}
	edited, _, err := n.EditNetwork(t.Context(), record.ID, func(s store.Sandbox) (allow, deny []string, err error) {
		return append(slices.Clone(s.Network.AllowOut), "9.9.9.9"), s.Network.DenyOut, nil
	})
	if err != nil || len(edited.Network.AllowOut) != 2 || len(edited.Grants) != 1 {
		t.Errorf("edited: %+v, %v", edited, err)
	}
	if !r.reaches(record, "9.9.9.9") || !r.reaches(record, "8.8.8.8") {
		t.Error("the edit is not in force")
	}
	if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{}); err != nil {
		t.Fatal(err)
	}
	if r.reaches(record, "8.8.8.8") {
		t.Error("a grant outlived the document that replaced everything")
	}
}
