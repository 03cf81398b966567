package kernel

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/google/nftables"

	"github.com/moat-sandbox/moat/internal/policy"
)

// A restarted server takes over, again and again, while a connection goes on
// and a denied address is tried all the time.
func TestAdoptKeepsFlowsAndNeverOpens(t *testing.T) {
	n := open(t)
	p := compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}})
	s, orphan := create(t, n, p), create(t, n, openPolicy(t))
	tcp, udp := dialFrom(t, s, "tcp", one4), dialFrom(t, s, "udp", one6)

	stop := make(chan struct{})
	var busy sync.WaitGroup
	leak := func() error {
		switch got, err := tryProbe(s, policy.UDP, addr(eight4), patience); {
		case err != nil:
			return err
		case got == reached:
			return errors.New("a denied address was reached")
		}
		return nil
	}
	for name, step := range map[string]func() error{
		"tcp":  func() error { return echoOnce(tcp) },
		"udp":  func() error { return echoOnce(udp) },
		"leak": leak,
	} {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := step(); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	for range 30 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := Open(config(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Create(context.Background()); !errors.Is(err, errNotAdopted) {
			t.Fatalf("a slot was created over foreign rules: %v", err)
		}
		loaded, err := again.Load(s.Index)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Adopt(context.Background(), []Tenant{{Slot: loaded, Policy: p}}); err != nil {
			t.Fatal(err)
		}
		n.rules, n.tracker, n.barrier, n.lock, n.adopted, n.slots = again.rules, again.tracker, again.barrier, again.lock, again.adopted, again.slots
	}
	close(stop)
	busy.Wait()
	expectSilence(t, orphan, one4)
	if err := n.Sweep(context.Background(), []Slot{s}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Load(orphan.Index); !errors.Is(err, ErrUnknownSlot) {
		t.Errorf("the slot of nobody is still there: %v", err)
	}
	expect(t, s, policy.Allow, one4)
}

// While the server was away its settings changed: what is denied now is cut.
func TestAdoptCutsWhatIsDeniedNow(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	stays, goes := dialFrom(t, s, "tcp", one4), dialFrom(t, s, "tcp", eight4)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	reopen(t, n)
	n.slots = map[int]*state{}
	tight := compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}})
	if err := n.Adopt(context.Background(), []Tenant{{Slot: s, Policy: tight}}); err != nil {
		t.Fatal(err)
	}
	if err := echoOnce(stays); err != nil {
		t.Errorf("an allowed connection died: %v", err)
	}
	if err := echoOnce(goes); err == nil {
		t.Error("a denied connection lives on")
	}
	if count := countFlows(t, n, s); count != 1 {
		t.Errorf("%d flows are left, want 1", count)
	}
}

func TestAdoptRefuses(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	if err := n.Adopt(context.Background(), nil); err == nil {
		t.Error("slots in use were adopted")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	reopen(t, n)
	n.slots = map[int]*state{}
	missing := mustSlot(t, n, s.Index%n.maxIndex()+1)
	if err := n.Adopt(context.Background(), []Tenant{{Slot: missing}}); !errors.Is(err, ErrUnknownSlot) {
		t.Errorf("a slot that does not exist was adopted: %v", err)
	}
	expect(t, s, policy.Allow, one4) // nothing has changed
}

// A server dies in the middle of taking over. Whatever it has left, the next one
// takes over from there, and not a denied packet gets out meanwhile.
func TestAdoptAfterAdoptionCutShort(t *testing.T) {
	for name, steps := range map[string]func(t *testing.T, r *rules, base basePlan, slots []slotPlan, old []*nftables.Table){
		"after laying": func(t *testing.T, r *rules, base basePlan, slots []slotPlan, _ []*nftables.Table) {
			must(t, r.layAll(base, slots))
		},
		"after arming": func(t *testing.T, r *rules, base basePlan, slots []slotPlan, _ []*nftables.Table) {
			must(t, r.layAll(base, slots))
			must(t, r.arm(base))
		},
		"after disarming": func(t *testing.T, r *rules, base basePlan, slots []slotPlan, old []*nftables.Table) {
			must(t, r.layAll(base, slots))
			must(t, r.arm(base))
			must(t, r.disarm(old))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := open(t)
			p := compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4, eight6}})
			s := create(t, n, p)
			internet := listen(t, internetNS, "net0")
			stop4, stop6 := flood(t, s, eight4), flood(t, s, eight6)

			plan, err := planSlot(s, p, 9)
			must(t, err)
			old, err := n.rules.found()
			must(t, err)
			n.rules.table = n.rules.places[1-slices.Index(n.rules.places[:], n.rules.table)]
			steps(t, n.rules, planBase(n.layout, n.never), []slotPlan{plan}, old)

			must(t, n.Close())
			reopen(t, n)
			n.slots = map[int]*state{}
			must(t, n.Adopt(context.Background(), []Tenant{{Slot: s, Policy: p}}))
			if sent := stop4() + stop6(); sent < 100 {
				t.Errorf("only %d packets were sent, the test shows nothing", sent)
			}
			if got := internet.frames(isUDPTo(forged)); len(got) > 0 {
				t.Errorf("%d denied packets got out", len(got))
			}
			if tables, err := n.rules.found(); err != nil || len(tables) != 2 {
				t.Errorf("there are tables %v, %v, want one of each family", tables, err)
			}
			expect(t, s, policy.Allow, one4, one6)
			expect(t, s, policy.Deny, eight4)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
