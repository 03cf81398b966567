package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

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
//
// What all rules let through is accepted, so chains that must not do that end
// with a rule that drops. A dropping policy would act too early: when tables
// are replaced the kernel runs a new chain, still without its rules, before the
// transaction takes effect.
type base struct {
	kind     string // filter or nat
	hook     string // as nft names it
	hooknum  uint32
	device   string // for ingress
	priority int32
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

// meter is a set of interfaces to which rules add, each with what the rule counts
// of it.
type meter struct {
	name    string
	timeout time.Duration // after which an unused interface is dropped; 0 for never
}

// meterSize is how many interfaces a meter holds.
const meterSize = 65535

// basePlan is what all slots of a network share.
type basePlan struct {
	maps   []string
	meters []meter
	sets   []set
	inet   []chain
	netdev []chain
}

// planBase returns the shared part. It depends on nothing but its arguments.
func planBase(l layout, never *policy.Never) basePlan {
	never4, never6 := never.Ranges()
	sets := []set{{name: "never4", ranges: never4}, {name: "never6", v6: true, ranges: never6}}
	return basePlan{
		maps:   []string{mapOut, mapIn, mapRedirect},
		meters: []meter{{name: meterRefusals, timeout: time.Minute}, {name: meterFlows}},
		sets:   sets,
		inet:   slices.Concat(hookChains(l), redirectChains(l, sets), judgeChains(l, sets), refuseChains()),
		netdev: []chain{headersChain()},
	}
}

// beforeFilter runs our chains ahead of those of firewalls at priority 0, so
// that a refusal is answered before anything drops the packet silently.
const beforeFilter = -10

// hookForward is the chain that shows whether tables judge: it has rules then.
const hookForward = "forward"

// hookChains tell packets of slots from all others. They touch no packet that
// neither comes from a slot nor goes to one or to the doors.
func hookChains(l layout) []chain {
	slots := l.ifPrefix()
	hook := func(name string, num uint32) *base {
		return &base{kind: "filter", hook: name, hooknum: num, priority: beforeFilter}
	}
	return []chain{
		// Where no sandbox lives there is no route, and a packet without one never
		// gets as far as being forwarded. It shall be refused like all others.
		{name: "prerouting", base: hook("prerouting", unix.NF_INET_PRE_ROUTING), rules: []rule{
			{inPrefix(slots), to(l.range4), ctState("new", expr.CtStateBitNEW), goTo("refuse")},
			{inPrefix(slots), to(l.range6), ctState("new", expr.CtStateBitNEW), goTo("refuse")},
		}},
		{name: hookForward, base: hook("forward", unix.NF_INET_FORWARD), rules: []rule{
			{inPrefix(slots), goTo("from_slot")},
			{outPrefix(slots), goTo("to_slot")},
		}},
		{name: "input", base: hook("input", unix.NF_INET_LOCAL_IN), rules: []rule{
			{inPrefix(slots), goTo("to_node")},
			// The doors are for sandboxes only, not for the node's neighbours.
			{notIn(loopback), toAddr(l.doors.Addr4), counter(), drop()},
			{notIn(loopback), toAddr(l.doors.Addr6), counter(), drop()},
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
func judgeChains(l layout, never []set) []chain {
	return []chain{
		{name: "from_slot", rules: []rule{
			{outPrefix(l.ifPrefix()), goTo("refuse")}, // another sandbox
			{toSet(never[0]), goTo("refuse")},
			{toSet(never[1]), goTo("refuse")},
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
		// Of the node a sandbox sees answers to what the node began, and the doors,
		// if it was sent there.
		{name: "to_node", rules: []rule{
			{ctState("established", expr.CtStateBitESTABLISHED), ctReply(), accept()},
			{ctState("invalid", expr.CtStateBitINVALID), counter(), drop()},
			{ctState("related", expr.CtStateBitRELATED), goTo("errors")},
			{ctRedirected(), goTo("door")},
			{goTo("refuse")},
		}},
		doorChain(l.doors),
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
	slot     Slot
	sets     []set
	out      chain // packets from the slot
	in       chain // packets to the slot
	redirect chain // first packets of flows from the slot
	guard    chain // frames as they come from the slot
	// digest identifies the plan. The kernel carries it with the rules, so that
	// they can be told from those of another plan.
	digest string
}

// planSlot turns a policy into rules. It is pure: the same arguments give the
// same plan. A nil policy closes the slot in both directions.
//
// The generation numbers the plans of a slot. It is part of the names of sets,
// because old and new rules must not share one: a packet that the old rules
// have begun to judge would be looked for among the addresses of the new.
func planSlot(s Slot, p *policy.Policy, generation int) (slotPlan, error) {
	plan := closedPlan(s)
	if p != nil {
		if err := plan.open(p.Ranges(), p.Carry(), generation); err != nil {
			return slotPlan{}, fmt.Errorf("plan slot %d: %w", s.Index, err)
		}
	}
	sum := sha256.Sum256([]byte(plan.String()))
	plan.digest = "plan " + hex.EncodeToString(sum[:8])
	return plan, nil
}

func closedPlan(s Slot) slotPlan {
	closed := []rule{{counter(), drop()}}
	return slotPlan{
		slot:     s,
		out:      chain{name: fmt.Sprintf("out_%d", s.Index), rules: closed},
		in:       chain{name: fmt.Sprintf("in_%d", s.Index), rules: closed},
		redirect: chain{name: fmt.Sprintf("redirect_%d", s.Index)},
		guard: chain{name: fmt.Sprintf("guard_%d", s.Index), rules: closed, base: &base{
			kind: "filter", hook: "ingress", hooknum: unix.NF_NETDEV_INGRESS, device: s.HostIf, priority: -500,
		}},
	}
}

// open makes a closed plan let through what a policy says.
func (p *slotPlan) open(r policy.Ranges, c policy.Carry, generation int) (err error) {
	lists := listsOf(r, fmt.Sprintf("%d_%d", p.slot.Index, generation))
	p.sets = setsOf(lists)
	p.out.rules = judgeRules(c, lists, r.Default)
	p.in.rules = []rule{{counter(), accept()}}
	p.guard.rules = guardRules(p.slot)
	p.redirect.rules, err = redirectRules(c, lists, r.Default)
	return err
}

func (p slotPlan) setNames() []string {
	names := make([]string, len(p.sets))
	for i, s := range p.sets {
		names[i] = s.name
	}
	return names
}

// list is a list of the policy: which addresses it has, and what it says.
type list struct {
	set     set
	verdict policy.Verdict
}

// listsOf returns the lists in the order in which they are asked. One without
// entries costs nothing.
func listsOf(r policy.Ranges, suffix string) []list {
	return slices.DeleteFunc([]list{
		{set{name: "allow4_" + suffix, ranges: r.Allow4}, policy.Allow},
		{set{name: "allow6_" + suffix, ranges: r.Allow6, v6: true}, policy.Allow},
		{set{name: "deny4_" + suffix, ranges: r.Deny4}, policy.Deny},
		{set{name: "deny6_" + suffix, ranges: r.Deny6, v6: true}, policy.Deny},
	}, func(l list) bool { return len(l.set.ranges) == 0 })
}

// setsOf returns the sets that the lists need: one with every address needs none.
func setsOf(lists []list) (sets []set) {
	for _, l := range lists {
		if !l.set.full() {
			sets = append(sets, l.set)
		}
	}
	return sets
}

// judgeRules decide about packets of direct flows.
func judgeRules(c policy.Carry, lists []list, byDefault policy.Verdict) []rule {
	rules := append([]rule{
		{l4proto("icmp", unix.IPPROTO_ICMP), limitOver(echoRate, echoBurst), counter(), drop()},
		{l4proto("ipv6-icmp", unix.IPPROTO_ICMPV6), limitOver(echoRate, echoBurst), counter(), drop()},
	}, undirectRules(c)...)
	return byLists(rules, lists, byDefault, rule{counter(), accept()}, rule{goTo("refuse")})
}

// byLists appends rules that ask the lists and do what follows from the answer.
func byLists(rules []rule, lists []list, byDefault policy.Verdict, allow, deny rule) []rule {
	then := map[policy.Verdict]rule{policy.Allow: allow, policy.Deny: deny}
	for _, l := range lists {
		rules = append(rules, append(rule{l.set.match()}, then[l.verdict]...))
	}
	return append(rules, then[byDefault])
}

// match matches packets to the addresses of a set.
func (s set) match() statement {
	switch {
	case s.full() && s.v6:
		return is6()
	case s.full():
		return is4()
	}
	return toSet(s)
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
