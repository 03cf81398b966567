package dns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

func TestSyntheticAddressesAreNotUsedTwice(t *testing.T) {
	table := newSynthetic()
	now := time.Now()
	type promise struct {
		name  string
		until time.Time
	}
	promised := make(map[netip.Addr]promise)
	refused := 0
	for i := range 20 * maxSynthetic {
		now = now.Add(2 * time.Millisecond) // faster than they expire
		name := fmt.Sprintf("host%d.example", i)
		if i%3 == 0 {
			name = "often.example"
		}
		addr, ok := table.address(name, now)
		if !ok {
			refused++
			continue
		}
		if p := promised[addr]; p.name != name && now.Before(p.until) {
			t.Fatalf("%v is given to %s and still stands for %s", addr, name, p.name)
		}
		promised[addr] = promise{name, now.Add(syntheticLease)}
		if !policy.Synthetic().Contains(addr) || addr == policy.Synthetic().Addr() {
			t.Fatalf("%s is at %v", name, addr)
		}
		if got, ok := table.name(addr); !ok || got != name {
			t.Fatalf("%v stands for %q, want %q", addr, got, name)
		}
	}
	if len(table.byName) != maxSynthetic || len(table.byAddr) != maxSynthetic || table.recent.Len() != maxSynthetic {
		t.Errorf("%d names, %d addresses, %d in the list, want %d", len(table.byName), len(table.byAddr), table.recent.Len(), maxSynthetic)
	}
	if refused == 0 {
		t.Error("the test does not fill the table")
	}
	if addr, ok := table.address("later.example", now.Add(syntheticLease)); !ok {
		t.Errorf("no place after all have expired: %v", addr)
	}
}

func TestSyntheticPromiseIsRenewed(t *testing.T) {
	table := newSynthetic()
	table.limit = 2
	began := time.Now()
	at := func(d time.Duration, name string) bool {
		_, ok := table.address(name, began.Add(d))
		return ok
	}
	at(0, "first.example")
	at(0, "second.example")
	at(syntheticLease-time.Second, "first.example")
	if !at(syntheticLease, "third.example") {
		t.Error("the place of a name that has expired is not free")
	}
	if at(syntheticLease+time.Second, "fourth.example") {
		t.Error("the place of a name that was asked for again is free")
	}
}

func TestSyntheticAddressesOutlastTheServer(t *testing.T) {
	now := time.Now()
	first, second := newSynthetic(), newSynthetic()
	second.address("other.example", now)
	a, _ := first.address("evil.example", now)
	b, _ := second.address("evil.example", now)
	if a != b {
		t.Errorf("%v before, %v after", a, b)
	}
	// An address that has expired is named until its place is needed.
	if name, ok := first.name(a); !ok || name != "evil.example" {
		t.Errorf("%v stands for %q", a, name)
	}
	if first.address("evil.example", now.Add(time.Hour)); len(first.byName) != 1 {
		t.Errorf("%d places are taken by one name", len(first.byName))
	}
}

func TestSyntheticAddressesCollide(t *testing.T) {
	table := newSynthetic()
	now := time.Now()
	want, _ := table.address("evil.example", now)
	crowded := newSynthetic()
	crowded.byAddr[offsetOf(want)] = crowded.recent.PushFront(&pretended{name: "first.example", offset: offsetOf(want), expires: now})
	if got, ok := crowded.address("evil.example", now); !ok || got != want.Next() {
		t.Errorf("beside %v the name gets %v, want %v", want, got, want.Next())
	}
}

func TestLimitsOfOneClient(t *testing.T) {
	now := time.Now()
	limits := Limits{PerSecond: 10, Burst: 5, Concurrent: 3, Connections: 1}
	cs := &clients{limits: limits, byID: make(map[string]*client)}
	c := cs.of("alpha", now)
	take := func(n int, release bool) (got [3]int) {
		for range n {
			a := c.admit(now)
			got[a]++
			if release {
				c.release(a)
			}
		}
		return got
	}
	if got, want := take(12, true), [3]int{admitted: 5, refused: 5, dropped: 2}; got != want {
		t.Errorf("a burst: got %v, want %v", got, want)
	}
	now = now.Add(time.Second / 10)
	if got, want := take(3, true), [3]int{admitted: 1, refused: 1, dropped: 1}; got != want {
		t.Errorf("a tenth of a second later: got %v, want %v", got, want)
	}
	now = now.Add(time.Hour)
	if got, want := take(5, false), [3]int{admitted: 3, refused: 2}; got != want {
		t.Errorf("that take their time: got %v, want %v", got, want)
	}
	if !c.connect() || c.connect() {
		t.Error("one connection is allowed, and not two")
	}
	c.disconnect()
	if !c.connect() {
		t.Error("a connection cannot take the place of another")
	}
}

func TestSilentClientsAreForgotten(t *testing.T) {
	now := time.Now()
	cs := &clients{limits: Limits{}.withDefaults(), byID: make(map[string]*client)}
	cs.of("gone", now)
	cs.of("waiting", now).admit(now)
	cs.of("connected", now).connect()
	now = now.Add(forgetAfter)
	cs.of("recent", now)
	if len(cs.byID) != 4 {
		t.Errorf("%d clients are known", len(cs.byID))
	}
	now = now.Add(time.Second)
	cs.of("new", now)
	if cs.find("gone", now) != nil {
		t.Error("the silent one is not forgotten")
	}
	for _, id := range []string{"waiting", "connected", "recent", "new"} {
		if cs.find(id, now) == nil {
			t.Errorf("%s is forgotten", id)
		}
	}
}
