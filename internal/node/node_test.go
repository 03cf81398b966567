package node

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

func spec(team string) sandbox.Spec {
	return sandbox.Spec{
		Team: team, Template: "base", Timeout: time.Hour, Secure: true,
		Env:     map[string]string{"A": "caller", "SECRET": "s3cr3t"},
		Network: policy.Document{Default: policy.Allow},
	}
}

func create(t *testing.T, n *Node, team string) store.Sandbox {
	t.Helper()
	record, err := n.Create(t.Context(), spec(team))
	if err != nil {
		t.Fatal(err)
	}
	return record
}

func wantTraces(t *testing.T, r *rig, want string) {
	t.Helper()
	if got := strings.Join(r.traces(), ", "); got != want {
		t.Fatalf("on the machine: %q, want %q", got, want)
	}
}

func TestCreateReachKill(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")

	reached, ok := n.Reach(record.ID)
	if !ok || reached.Addr != rigSlot(record.Slot).IP4 {
		t.Fatalf("reach: %v %v", reached, ok)
	}
	told := r.boxes[record.Box].told
	if told.EnvVars["A"] != "caller" || told.EnvVars["LANG"] != "C.UTF-8" {
		t.Errorf("environment in the guest: %v", told.EnvVars)
	}
	if told.AccessToken == "" || told.AccessToken != n.GuestToken(record).Reveal() {
		t.Error("the guest was not told the token that callers get")
	}
	if err := n.Kill(t.Context(), record.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case <-reached.Done:
	default:
		t.Error("visitors were not told of the end")
	}
	if err := n.Kill(t.Context(), record.ID); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("second kill: %v", err)
	}
	wantTraces(t, r, "")
}

// Whatever step of a create fails, nothing of it stays behind and nothing is
// counted.
func TestCreateFailsWhole(t *testing.T) {
	for _, step := range []string{"slot create", "boot", "apply", "start", "init", "record"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			n := r.open()
			defer n.Close()
			r.setBroken(step, true)
			if _, err := n.Create(t.Context(), spec("a")); err == nil {
				t.Fatal("create succeeded")
			}
			wantTraces(t, r, "")
			r.setBroken(step, false)
			create(t, n, "a")
			create(t, n, "a") // the failed one does not count against the team's two
		})
	}
}

// A warm box may have ended while it waited: the next one is taken, and where
// there is none another is booted.
func TestWarmBoxesThatEnded(t *testing.T) {
	r := newRig(t)
	n := r.openWithPool(2)
	defer n.Close()
	full := func() bool { return len(n.started.ready) == 2 && len(n.empty.ready) == 2 }
	eventually(t, full)
	r.mu.Lock()
	dead := maps.Clone(r.boxes)
	r.mu.Unlock()
	for _, b := range dead {
		b.once.Do(func() { close(b.ended) })
		b.hangUp()
	}
	record := create(t, n, "a")
	if len(dead) != 4 || dead[record.Box] != nil {
		t.Errorf("the sandbox is in box %s, one of the %d that had ended", record.Box, len(dead))
	}
	eventually(t, full)
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range dead {
		if r.boxes[id] != nil {
			t.Errorf("box %s has ended and was not given back", id)
		}
	}
}

func TestLimits(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	create(t, n, "a")
	second := create(t, n, "a")
	if _, err := n.Create(t.Context(), spec("a")); !errors.Is(err, sandbox.ErrTeamLimit) {
		t.Errorf("third of a team: %v", err)
	}
	create(t, n, "b")
	if _, err := n.Create(t.Context(), spec("b")); !errors.Is(err, sandbox.ErrNoCapacity) {
		t.Errorf("fourth on the machine: %v", err)
	}
	if err := n.Kill(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	create(t, n, "b")
}

// Stored policy, effective policy and the answer agree, whatever fails.
func TestSetNetworkFailsWhole(t *testing.T) {
	for _, step := range []string{"apply", "update"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			n := r.open()
			defer n.Close()
			record := create(t, n, "a")
			r.setBroken(step, true)
			if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{}); err == nil {
				t.Fatal("update succeeded")
			}
			r.setBroken(step, false)
			stored, err := r.store.Sandbox(t.Context(), record.ID)
			if err != nil || stored.Generation != 1 || stored.Network.Default != policy.Allow {
				t.Errorf("stored: %+v, %v", stored, err)
			}
			if !allows(r.policy(record.Slot)) {
				t.Error("the old policy is not in force")
			}
			receipt, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{})
			if err != nil || receipt.Generation != 2 {
				t.Fatalf("update afterwards: %+v, %v", receipt, err)
			}
			if allows(r.policy(record.Slot)) {
				t.Error("the new policy is not in force")
			}
		})
	}
}

func allows(p *policy.Policy) bool {
	flow := policy.Flow{Proto: policy.TCP, Dst: netip.MustParseAddrPort("93.184.216.34:443")}
	return p.Decide(flow).Verdict == policy.Allow
}

// A sandbox whose time was extended in the moment it ran out lives on.
func TestExpireAfterExtension(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	if _, err := n.SetEnd(t.Context(), record.ID, time.Now().Add(2*time.Hour), true); err != nil {
		t.Fatal(err)
	}
	n.expire(record.ID)
	if _, ok := n.Reach(record.ID); !ok {
		t.Error("it is gone")
	}
	if got, err := n.SetEnd(t.Context(), record.ID, time.Now().Add(time.Minute), true); err != nil || got.EndAt.Before(time.Now().Add(time.Hour)) {
		t.Errorf("an extension made it end earlier: %v %v", got.EndAt, err)
	}
}

// A timer that fires early, as after the clock was set back, fires again.
func TestExpireTooEarly(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	if _, err := n.SetEnd(t.Context(), record.ID, time.Now().Add(2*time.Second), false); err != nil {
		t.Fatal(err)
	}
	l, err := n.find(record.ID)
	if err != nil {
		t.Fatal(err)
	}
	l.expiry.Stop()
	n.expire(record.ID)
	eventually(t, func() bool { _, ok := n.Reach(record.ID); return !ok })
}

func TestTimeoutRemoves(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	reached, _ := n.Reach(record.ID)
	if _, err := n.SetEnd(t.Context(), record.ID, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	<-reached.Done
	eventually(t, func() bool { return len(r.traces()) == 0 })
}

func TestBoxEndsByItself(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	box := r.boxes[record.Box]
	box.once.Do(func() { close(box.ended) })
	eventually(t, func() bool { return len(r.traces()) == 0 && n.Count() == 0 })
}

// What could not be torn down is not forgotten.
func TestRemovalIsTriedAgain(t *testing.T) {
	for _, step := range []string{"box destroy", "slot destroy"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			n := r.open()
			defer n.Close()
			record := create(t, n, "a")
			r.setBroken(step, true)
			if err := n.Kill(t.Context(), record.ID); !errors.Is(err, errBroken) {
				t.Fatalf("kill: %v", err)
			}
			if _, ok := n.Reach(record.ID); ok {
				t.Error("it is still reachable")
			}
			r.setBroken(step, false)
			n.expire(record.ID) // what the timer does
			wantTraces(t, r, "")
		})
	}
}

// A new server takes over what runs and removes what nobody claims.
func TestAdoption(t *testing.T) {
	r := newRig(t)
	first := r.open()
	kept, expired, lost, half := create(t, first, "a"), create(t, first, "a"), create(t, first, "b"), "ihalf"
	first.Close() // as a server that dies: nothing is torn down

	ctx := context.Background()
	change := func(id string, f func(*store.Sandbox)) {
		if _, err := r.store.UpdateSandbox(ctx, id, func(s *store.Sandbox) error { f(s); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	change(expired.ID, func(s *store.Sandbox) { s.EndAt = time.Now().Add(-time.Second) })
	change(kept.ID, func(s *store.Sandbox) { s.Network = policy.Document{} })
	r.boxes[lost.Box].hangUp()
	delete(r.boxes, lost.Box)
	if err := r.store.CreateSandbox(ctx, store.Sandbox{ID: half, Team: "a", State: sandbox.Stopping, Box: "bgone", Slot: 99}); err != nil {
		t.Fatal(err)
	}
	orphan, err := r.Create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (rigRuntime{r}).Prepare(ctx, "borphan", orphan.NetNS, sandbox.Limits{}); err != nil {
		t.Fatal(err)
	}

	second := r.open()
	defer second.Close()
	wantTraces(t, r, "box "+kept.Box+", record "+kept.ID+", slot 1")
	if _, ok := second.Reach(kept.ID); !ok {
		t.Error("the running sandbox was not adopted")
	}
	if allows(r.policy(kept.Slot)) {
		t.Error("the stored policy is not in force")
	}
	create(t, second, "a")
	if _, err := second.Create(ctx, spec("a")); !errors.Is(err, sandbox.ErrTeamLimit) {
		t.Errorf("the adopted one is not counted: %v", err)
	}
}

func TestSamples(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	samples, err := n.Samples(t.Context(), record.ID, time.Time{}, time.Time{})
	if err != nil || len(samples) != 1 || samples[0].MemUsed != 40 || samples[0].CPUs != 2 {
		t.Fatalf("samples: %+v, %v", samples, err)
	}
	samples, err = n.Samples(t.Context(), record.ID, time.Time{}, samples[0].At.Add(-time.Second))
	if err != nil || len(samples) != 0 {
		t.Errorf("samples of before: %+v, %v", samples, err)
	}
}

func eventually(t *testing.T, reached func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !reached() {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 30 s")
		}
		time.Sleep(time.Millisecond)
	}
}
