package node

import (
	"net/netip"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/store"
)

// Tenants is told who has which addresses, and under which policy. Neither can
// fail: what can is done before.
type Tenants interface {
	Put(addr4, addr6 netip.Addr, t egress.Tenant)
	Remove(addr4, addr6 netip.Addr, sandbox string)
}

// settle makes a sandbox the tenant of its slot's addresses, for all that
// speaks for sandboxes outside the kernel.
func (n *Node) settle(slot kernel.Slot, record store.Sandbox, p *policy.Policy) egress.Tenant {
	t := egress.Tenant{Sandbox: record.ID, Team: record.Team, Policy: p, Generation: record.Generation, StrictDNS: p.StrictDNS()}
	n.Tenants.Put(slot.IP4, slot.IP6, t)
	return t
}

// resettle is settle for a sandbox that has flows: it cuts those that the
// policy denies and returns how many they were.
func (n *Node) resettle(slot kernel.Slot, record store.Sandbox, p *policy.Policy) (cut int) {
	return n.Flows.Reevaluate(record.ID, n.settle(slot, record, p))
}

// evict takes a sandbox its addresses and cuts all its flows. From then on
// nobody speaks for it. Doing it again changes nothing, whoever has the
// addresses by then.
func (n *Node) evict(slot kernel.Slot, id string) {
	n.Tenants.Remove(slot.IP4, slot.IP6, id)
	n.Flows.Forget(id)
}
