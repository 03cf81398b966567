package kernel

import (
	"fmt"

	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// The rules of a network live in two tables of the same name. The inet table
// judges: packets of all slots share the chains of basePlan, and one lookup by
// interface leads to the chains of a slot. The netdev table guards the host
// ends against forged frames, each by its own chain.

// Maps that lead from an interface to the chains of its slot.
const (
	mapOut = "out" // packets from the slot
	mapIn  = "in"  // packets to the slot
)

// base says where in the kernel's path a chain is run. A chain without one is
// only run when another leads to it.
type base struct {
	kind     string // filter or nat
	hook     string // as nft names it
	hooknum  uint32
	device   string // for ingress
	priority int32
	drop     bool // what the last rule lets through is dropped, else accepted
}

type chain struct {
	name  string
	base  *base
	rules []rule
}

// set holds addresses of one family. The ranges are sorted and do not touch.
type set struct {
	name   string
	v6     bool
	ranges []netipx.IPRange
}

// basePlan is what all slots of a network share.
type basePlan struct {
	maps   []string
	sets   []set
	inet   []chain
	netdev []chain
}

// planBase returns the shared part. It depends on nothing but its arguments.
func planBase(l layout, never *policy.Never) basePlan {
	never4, never6 := never.Ranges()
	return basePlan{
		maps:   []string{mapOut, mapIn},
		sets:   []set{{name: "never4", ranges: never4}, {name: "never6", v6: true, ranges: never6}},
		inet:   append(hookChains(l), judgeChains(l)...),
		netdev: []chain{headersChain()},
	}
}

// beforeFilter runs our chains ahead of those of firewalls at priority 0, so
// that a refusal is answered before anything drops the packet silently.
const beforeFilter = -10

// hookChains tell packets of slots from all others. They touch no packet that
// neither comes from a slot nor goes to one.
func hookChains(l layout) []chain {
	slots := l.ifPrefix()
	hook := func(name string, num uint32) *base {
		return &base{kind: "filter", hook: name, hooknum: num, priority: beforeFilter}
	}
	return []chain{
		{name: "forward", base: hook("forward", unix.NF_INET_FORWARD), rules: []rule{
			{inPrefix(slots), goTo("from_slot")},
			{outPrefix(slots), goTo("to_slot")},
		}},
		{name: "input", base: hook("input", unix.NF_INET_LOCAL_IN), rules: []rule{
			{inPrefix(slots), goTo("to_node")},
		}},
		{name: "output", base: hook("output", unix.NF_INET_LOCAL_OUT), rules: []rule{
			{outPrefix(slots), goTo("enter")},
		}},
		{name: "postrouting", base: &base{kind: "nat", hook: "postrouting", hooknum: unix.NF_INET_POST_ROUTING, priority: 100}, rules: []rule{
			{from(l.range4), notOutPrefix(slots), masquerade()},
			{from(l.range6), notOutPrefix(slots), masquerade()},
		}},
	}
}

// judgeChains are the order of evaluation.
//
// Every packet that leaves a slot is judged by where it goes, not only the
// first of its flow: a tightened policy holds from its first packet on. What
// the connection tracker knows counts only for what comes back.
func judgeChains(l layout) []chain {
	return []chain{
		{name: "from_slot", rules: []rule{
			{outPrefix(l.ifPrefix()), goTo("refuse")}, // another sandbox
			{toSet4("never4"), goTo("refuse")},
			{toSet6("never6"), goTo("refuse")},
			{ctState("invalid", expr.CtStateBitINVALID), counter(), drop()},
			{ctState("related", expr.CtStateBitRELATED), goTo("errors")},
			{synOnly(), clampMSS()},
			{l4proto("tcp", unix.IPPROTO_TCP), goTo("judge")},
			{l4proto("udp", unix.IPPROTO_UDP), goTo("judge")},
			{icmp4("echo-request", 8), goTo("judge")},
			{icmp6("echo-request", 128), goTo("judge")},
			{goTo("refuse")},
		}},
		{name: "judge", rules: []rule{
			{inMap(mapOut)},
			{counter(), drop()}, // no slot that is known
		}},
		{name: "to_slot", rules: []rule{
			{synOnly(), clampMSS()},
			{ctState("established", expr.CtStateBitESTABLISHED), ctReply(), goTo("enter")},
			{ctState("related", expr.CtStateBitRELATED), l4proto("icmp", unix.IPPROTO_ICMP), goTo("enter")},
			{ctState("related", expr.CtStateBitRELATED), l4proto("ipv6-icmp", unix.IPPROTO_ICMPV6), goTo("enter")},
			{counter(), drop()},
		}},
		{name: "enter", rules: []rule{
			{outMap(mapIn)},
			{counter(), drop()},
		}},
		// Of the node a sandbox sees only answers to what the node began.
		{name: "to_node", rules: []rule{
			{ctState("established", expr.CtStateBitESTABLISHED), ctReply(), accept()},
			{ctState("invalid", expr.CtStateBitINVALID), counter(), drop()},
			{ctState("related", expr.CtStateBitRELATED), goTo("errors")},
			{goTo("refuse")},
		}},
		// ICMP errors about known flows; redirects are not among them.
		{name: "errors", rules: []rule{
			{icmp4("destination-unreachable", 3), accept()},
			{icmp4("time-exceeded", 11), accept()},
			{icmp4("parameter-problem", 12), accept()},
			{icmp6("destination-unreachable", 1), accept()},
			{icmp6("packet-too-big", 2), accept()},
			{icmp6("time-exceeded", 3), accept()},
			{icmp6("parameter-problem", 4), accept()},
			{counter(), drop()},
		}},
		{name: "refuse", rules: []rule{
			{l4proto("tcp", unix.IPPROTO_TCP), counter(), resetTCP()},
			{counter(), prohibit()},
		}},
	}
}

// headersChain admits IPv6 packets whose first header is one that is judged;
// hop-by-hop options, routing headers and the like go no further.
func headersChain() chain {
	return chain{name: "headers6", rules: []rule{
		{nextHeader6("tcp", unix.IPPROTO_TCP), accept()},
		{nextHeader6("udp", unix.IPPROTO_UDP), accept()},
		{nextHeader6("ipv6-icmp", unix.IPPROTO_ICMPV6), accept()},
		{nextHeader6("ipv6-frag", unix.IPPROTO_FRAGMENT), accept()},
		{counter(), drop()},
	}}
}

// ICMP echo is for looking, not for carrying data: this many packets per
// second of one sandbox pass, the rest is dropped.
const (
	echoRate  = 50
	echoBurst = 100
)

// slotPlan is everything the kernel holds for one slot. Its text shows the
// rules as nft prints them.
type slotPlan struct {
	layout layout
	slot   Slot
	sets   []set // always the same four, so that a plan replaces any other
	out    chain
	in     chain
	guard  chain
}

// planSlot turns a policy into rules. It is pure: the same arguments give the
// same plan. A nil policy closes the slot in both directions.
func planSlot(l layout, s Slot, p *policy.Policy) (slotPlan, error) {
	ranges, err := p.Ranges()
	if err != nil {
		return slotPlan{}, fmt.Errorf("plan slot %d: %w", s.Index, err)
	}
	name := func(prefix string) string { return fmt.Sprintf("%s_%d", prefix, s.Index) }
	plan := slotPlan{layout: l, slot: s, sets: []set{
		{name: name("allow4"), ranges: ranges.Allow4},
		{name: name("allow6"), v6: true, ranges: ranges.Allow6},
		{name: name("deny4"), ranges: ranges.Deny4},
		{name: name("deny6"), v6: true, ranges: ranges.Deny6},
	}}
	plan.out = chain{name: name("out"), rules: []rule{{counter(), drop()}}}
	plan.in = chain{name: name("in"), rules: []rule{{counter(), drop()}}}
	plan.guard = chain{name: name("guard"), rules: []rule{{counter(), drop()}}, base: &base{
		kind: "filter", hook: "ingress", hooknum: unix.NF_NETDEV_INGRESS, device: s.HostIf, priority: -500, drop: true,
	}}
	if p != nil {
		plan.out.rules = judgeRules(plan.sets, ranges.Default)
		plan.in.rules = []rule{{counter(), accept()}}
		plan.guard.rules = guardRules(s)
	}
	return plan, nil
}

// judgeRules asks the lists in their order. A list without entries costs
// nothing, one with every address needs no lookup.
func judgeRules(sets []set, byDefault policy.Verdict) []rule {
	rules := []rule{
		{l4proto("icmp", unix.IPPROTO_ICMP), limitOver(echoRate, echoBurst), counter(), drop()},
		{l4proto("ipv6-icmp", unix.IPPROTO_ICMPV6), limitOver(echoRate, echoBurst), counter(), drop()},
	}
	allow := []statement{counter(), accept()}
	deny := []statement{goTo("refuse")}
	for i, then := range [][]statement{allow, allow, deny, deny} {
		if s := sets[i]; len(s.ranges) > 0 {
			rules = append(rules, append(rule{s.match()}, then...))
		}
	}
	if byDefault == policy.Allow {
		return append(rules, allow)
	}
	return append(rules, deny)
}

func (s set) match() statement {
	switch all := s.full(); {
	case all && s.v6:
		return is6()
	case all:
		return is4()
	case s.v6:
		return toSet6(s.name)
	}
	return toSet4(s.name)
}

// full reports whether the set holds its whole family.
func (s set) full() bool {
	if len(s.ranges) != 1 {
		return false
	}
	p, ok := s.ranges[0].Prefix()
	return ok && p.Bits() == 0
}

// guardRules admit frames that only this sandbox can have sent. ARP, neighbour
// discovery, VLAN tags and every other ethertype fall through: both ends know
// each other by permanent neighbour entries.
func guardRules(s Slot) []rule {
	return []rule{
		{frame(s.MAC, s.GatewayMAC, unix.ETH_P_IP), plainFrom4(s.IP4), accept()},
		{frame(s.MAC, s.GatewayMAC, unix.ETH_P_IPV6), from6(s.IP6), goTo("headers6")},
		{counter(), drop()},
	}
}
