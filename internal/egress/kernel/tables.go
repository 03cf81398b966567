package kernel

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A packet is judged while rules change, and takes a moment. The kernel
// switches from one generation of rules to the next at once, but
//   - a packet that the old rules have begun to judge looks into sets and maps
//     as they are after the change;
//   - a set of ranges that is filled in the same transaction as the rules that
//     ask it can be empty for its first packets (seen with Linux 6.18);
//   - of two chains at the same place the new one may be run first.
//
// So no two generations share a set, sets are filled before rules ask them,
// and tables are replaced by laying new ones beside the old. Tests send floods
// through every change and want no denied packet out and no allowed flow harmed.

// found lists our tables that are there, in either of their places.
func (r *rules) found() ([]*nftables.Table, error) {
	tables, err := (&nftables.Conn{}).ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.DeleteFunc(tables, func(t *nftables.Table) bool { return !slices.Contains(r.places[:], t.Name) }), nil
}

// deleteTables removes tables as part of a transaction.
func deleteTables(t *transaction, tables []*nftables.Table) {
	for _, table := range tables {
		t.deleteTable(byte(table.Family), table.Name)
	}
}

// renew puts new rules in the place of all that there are: the new tables come
// beside the old ones, both judge for a while, then the old ones go.
func (r *rules) renew(b *barrier, base basePlan, slots []slotPlan) error {
	place, err := r.freePlace()
	if err != nil {
		return err
	}
	old, err := r.found()
	if err != nil {
		return err
	}
	r.table = place
	if err := r.layAll(base, slots); err != nil {
		return err
	}
	if err := r.arm(base); err != nil {
		return err
	}
	return r.retire(b, old)
}

// freePlace finds a place for new tables. Tables are in both places if a
// process died in the middle of renew; then those that judge nothing go. If
// both judge, each is whole, and one is enough.
func (r *rules) freePlace() (string, error) {
	old, err := r.found()
	if err != nil {
		return "", err
	}
	for _, place := range r.places {
		if !slices.ContainsFunc(old, func(t *nftables.Table) bool { return t.Name == place }) {
			return place, nil
		}
	}
	for _, place := range r.places {
		judging, err := r.comments(inetFamily, place, hookForward)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return "", err
		}
		if len(judging) == 0 {
			return place, r.clear(place)
		}
	}
	return r.places[0], r.clear(r.places[0])
}

// retire removes tables. Their hooks go first, so that no packet is still
// being judged when the maps go that it needs.
func (r *rules) retire(b *barrier, old []*nftables.Table) error {
	if len(old) == 0 {
		return nil
	}
	if err := r.disarm(old); err != nil {
		return err
	}
	b.wait()
	t := newTransaction()
	deleteTables(t, old)
	return r.commit(t)
}

// disarm takes the rules out of every chain that the kernel runs.
func (r *rules) disarm(tables []*nftables.Table) error {
	t := newTransaction()
	for _, table := range tables {
		chains, err := (&nftables.Conn{}).ListChainsOfTableFamily(table.Family)
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, c := range chains {
			if c.Table.Name == table.Name && c.Hooknum != nil {
				t.flushChain(byte(table.Family), table.Name, c.Name)
			}
		}
	}
	return r.commit(t)
}

// clear removes the tables in one place, or in all places for "".
func (r *rules) clear(place string) error {
	tables, err := r.found()
	if err != nil {
		return err
	}
	tables = slices.DeleteFunc(tables, func(t *nftables.Table) bool { return place != "" && t.Name != place })
	t := newTransaction()
	deleteTables(t, tables)
	return r.commit(t)
}

// layAll adds the tables with what all slots share and what each has, still
// without effect: the chains that lead to them have no rules until arm adds them.
func (r *rules) layAll(p basePlan, slots []slotPlan) error {
	t := newTransaction()
	t.addTable(inetFamily, r.table, r.flags)
	t.addTable(netdevFamily, r.table, r.flags)
	for _, name := range p.maps {
		t.addMap(r.table, name)
	}
	for _, m := range p.meters {
		t.addMeter(r.table, m)
	}
	for _, s := range p.sets {
		t.addSet(r.table, s)
	}
	for family, chains := range p.chains() {
		for _, c := range chains { // all of them before any rule: rules lead from one to another
			t.addChain(family, r.table, c)
		}
		for _, c := range chains {
			if c.base == nil {
				t.addRules(family, r.table, c, "")
			}
		}
	}
	for _, plan := range slots {
		r.addSets(t, plan)
		r.add(t, plan)
	}
	return r.commit(t)
}

// arm puts tables that were laid in force.
func (r *rules) arm(p basePlan) error {
	t := newTransaction()
	for family, chains := range p.chains() {
		for _, c := range chains {
			if c.base != nil {
				t.addRules(family, r.table, c, "")
			}
		}
	}
	return r.commit(t)
}

func (p basePlan) chains() map[byte][]chain {
	return map[byte][]chain{inetFamily: p.inet, netdevFamily: p.netdev}
}

// add makes the rules of a slot that has none yet; its sets are there.
func (r *rules) add(t *transaction, p slotPlan) {
	t.addChain(inetFamily, r.table, p.out)
	t.addChain(inetFamily, r.table, p.in)
	t.addChain(inetFamily, r.table, p.redirect)
	t.addChain(netdevFamily, r.table, p.guard)
	r.addRules(t, p)
	t.route(r.table, mapOut, p.slot.HostIf, p.out.name)
	t.route(r.table, mapIn, p.slot.HostIf, p.in.name)
	t.route(r.table, mapRedirect, p.slot.HostIf, p.redirect.name)
}

// replace puts a plan, whose sets are there, in the place of another and
// removes the other's sets.
func (r *rules) replace(t *transaction, p slotPlan, oldSets []string) {
	t.flushChain(inetFamily, r.table, p.out.name)
	t.flushChain(inetFamily, r.table, p.in.name)
	t.flushChain(inetFamily, r.table, p.redirect.name)
	t.flushChain(netdevFamily, r.table, p.guard.name)
	r.addRules(t, p)
	r.deleteSets(t, oldSets)
}

func (r *rules) addRules(t *transaction, p slotPlan) {
	t.addRules(inetFamily, r.table, p.out, p.digest)
	t.addRules(inetFamily, r.table, p.in, p.digest)
	t.addRules(inetFamily, r.table, p.redirect, p.digest)
	t.addRules(netdevFamily, r.table, p.guard, p.digest)
}

func (r *rules) addSets(t *transaction, p slotPlan) {
	for _, s := range p.sets {
		t.addSet(r.table, s)
	}
}

func (r *rules) deleteSets(t *transaction, names []string) {
	for _, name := range names {
		t.deleteSet(r.table, name)
	}
}

// remove takes a slot's rules away, but for the guard.
func (r *rules) remove(t *transaction, p slotPlan, sets []string) {
	t.unroute(r.table, mapOut, p.slot.HostIf)
	t.unroute(r.table, mapIn, p.slot.HostIf)
	t.unroute(r.table, mapRedirect, p.slot.HostIf)
	t.deleteChain(inetFamily, r.table, p.out.name)
	t.deleteChain(inetFamily, r.table, p.in.name)
	t.deleteChain(inetFamily, r.table, p.redirect.name)
	r.deleteSets(t, sets)
}

// confirm reads back that the rules of a plan are the ones in force.
func (r *rules) confirm(p slotPlan) error {
	for _, c := range []chain{p.out, p.redirect} {
		got, err := r.comments(inetFamily, r.table, c.name)
		if err != nil {
			return fmt.Errorf("read back the rules: %w", err)
		}
		if len(got) != len(c.rules) {
			return fmt.Errorf("read back the rules: the kernel has %d in %s, want %d", len(got), c.name, len(c.rules))
		}
		for _, comment := range got {
			if comment != p.digest {
				return fmt.Errorf("read back the rules: those in %s are of %q, want %q", c.name, comment, p.digest)
			}
		}
	}
	return nil
}
