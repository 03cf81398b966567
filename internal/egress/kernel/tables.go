package kernel

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
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
	tables, err := r.read.ListTables()
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
func (r *rules) renew(base basePlan, slots []slotPlan) error {
	old, err := r.found()
	if err != nil {
		return err
	}
	used := func(place string) bool {
		return slices.ContainsFunc(old, func(t *nftables.Table) bool { return t.Name == place })
	}
	free := slices.IndexFunc(r.places[:], func(place string) bool { return !used(place) })
	if free < 0 {
		// An earlier process died in between. The rules are whole in both
		// places, one is enough.
		free = 0
		if err := r.clear(r.places[free]); err != nil {
			return err
		}
		if old, err = r.found(); err != nil {
			return err
		}
	}
	r.table = r.places[free]
	t := newTransaction()
	r.lay(t, base)
	for _, plan := range slots {
		r.addSets(t, plan)
		r.add(t, plan)
	}
	if err := r.commit(t); err != nil {
		return err
	}
	t = newTransaction()
	r.arm(t, base)
	if err := r.commit(t); err != nil {
		return err
	}
	return r.retire(old)
}

// retire removes tables. Their hooks go first, so that no packet is still
// being judged when the maps go that it needs.
func (r *rules) retire(old []*nftables.Table) error {
	t := newTransaction()
	for _, table := range old {
		chains, err := r.read.ListChainsOfTableFamily(table.Family)
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, c := range chains {
			if c.Table.Name == table.Name && c.Hooknum != nil {
				t.flushChain(byte(table.Family), table.Name, c.Name)
			}
		}
	}
	if err := r.commit(t); err != nil {
		return err
	}
	waitForPackets()
	t = newTransaction()
	deleteTables(t, old)
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

// lay adds the tables with what all slots share, still without effect: the
// chains that the kernel runs have no rules until arm adds them.
func (r *rules) lay(t *transaction, p basePlan) {
	t.addTable(inetFamily, r.table, r.flags)
	t.addTable(netdevFamily, r.table, r.flags)
	for _, name := range p.maps {
		t.addMap(r.table, name)
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
}

// arm puts tables that were laid in force.
func (r *rules) arm(t *transaction, p basePlan) {
	for family, chains := range p.chains() {
		for _, c := range chains {
			if c.base != nil {
				t.addRules(family, r.table, c, "")
			}
		}
	}
}

func (p basePlan) chains() map[byte][]chain {
	return map[byte][]chain{inetFamily: p.inet, netdevFamily: p.netdev}
}

// add makes the rules of a slot that has none yet; its sets are there.
func (r *rules) add(t *transaction, p slotPlan) {
	t.addChain(inetFamily, r.table, p.out)
	t.addChain(inetFamily, r.table, p.in)
	t.addChain(netdevFamily, r.table, p.guard)
	r.addRules(t, p)
	t.route(r.table, mapOut, p.slot.HostIf, p.out.name)
	t.route(r.table, mapIn, p.slot.HostIf, p.in.name)
}

// replace puts a plan, whose sets are there, in the place of another and
// removes the other's sets.
func (r *rules) replace(t *transaction, p slotPlan, oldSets []string) {
	t.flushChain(inetFamily, r.table, p.out.name)
	t.flushChain(inetFamily, r.table, p.in.name)
	t.flushChain(netdevFamily, r.table, p.guard.name)
	r.addRules(t, p)
	r.deleteSets(t, oldSets)
}

func (r *rules) addRules(t *transaction, p slotPlan) {
	t.addRules(inetFamily, r.table, p.out, p.digest)
	t.addRules(inetFamily, r.table, p.in, p.digest)
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
	t.deleteChain(inetFamily, r.table, p.out.name)
	t.deleteChain(inetFamily, r.table, p.in.name)
	r.deleteSets(t, sets)
}

// confirm reads back that the rules of a plan are the ones in force.
func (r *rules) confirm(p slotPlan) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	table := &nftables.Table{Name: r.table, Family: nftables.TableFamilyINet}
	got, err := r.read.GetRules(table, &nftables.Chain{Name: p.out.name})
	if err != nil {
		return fmt.Errorf("read back the rules: %w", err)
	}
	if len(got) != len(p.out.rules) {
		return fmt.Errorf("read back the rules: the kernel has %d, want %d", len(got), len(p.out.rules))
	}
	for _, rule := range got {
		if comment, _ := userdata.GetString(rule.UserData, userdata.TypeComment); comment != p.digest {
			return fmt.Errorf("read back the rules: they are of %q, want %q", comment, p.digest)
		}
	}
	return nil
}
