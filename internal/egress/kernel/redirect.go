package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// What addresses alone cannot decide about is redirected: the first packet of a
// flow gets the door as its destination, and the connection tracker does the
// same to the others. Chains of filters see redirected packets as ones to the
// node, those of sandboxes' direct flows as ones to be forwarded.

// mapRedirect leads from an interface to the chain that chooses what is
// redirected.
const mapRedirect = "redirect"

// redirectChains are what all slots share of it. Every flow of a slot comes by
// here once, so that they are counted here. What is never reachable is
// nobody's to answer for, but for web sites whose name is forbidden: the proxy
// says so. Public URLs of this server are at addresses that lead to nobody but the
// proxy, whatever the policy is.
func redirectChains(l layout, never []set) []chain {
	slots := l.ifPrefix()
	home4, home6 := policy.HomeAddrs()
	return []chain{
		{name: "arrive", base: &base{kind: "nat", hook: "prerouting", hooknum: unix.NF_INET_PRE_ROUTING, priority: beforeRouting}, rules: []rule{
			{inPrefix(slots), goTo("divert")},
		}},
		{name: "divert", rules: []rule{
			{meterFlowsOver(meterFlows, MaxFlows), counter(), goTo("refuse")},
			{toAddr(home4), isTCP(), goTo("to_proxy")},
			{toAddr(home6), isTCP(), goTo("to_proxy")},
			{to(policy.Synthetic()), dport(dnsPort), accept()},
			{notTo(policy.Synthetic()), toSet(never[0]), accept()},
			{toSet(never[1]), accept()},
			{inMap(mapRedirect)},
		}},
		{name: "by_port", rules: []rule{
			{udpTo(dnsPort), goTo("to_resolver")},
			{tcpTo(dnsPort), goTo("to_resolver")},
			{tcpTo(policy.PortHTTP), goTo("to_proxy")},
			{tcpTo(policy.PortHTTPS), goTo("to_proxy")},
		}},
		{name: "to_resolver", rules: []rule{
			{is4(), redirect(l.doors.Addr4, l.doors.Resolver)},
			{is6(), redirect(l.doors.Addr6, l.doors.Resolver)},
		}},
		{name: "to_proxy", rules: []rule{
			{is4(), isTCP(), redirect(l.doors.Addr4, l.doors.Proxy)},
			{is6(), isTCP(), redirect(l.doors.Addr6, l.doors.Proxy)},
		}},
		{name: "upstream", rules: []rule{
			{isTCP(), goTo("to_proxy")},
			{goTo(chainDirect)},
		}},
		directChain(l.names),
	}
}

// beforeRouting is where destinations are rewritten (dstnat).
const beforeRouting = -100

const dnsPort = 53

// doorChain admits what was redirected. It is only asked about packets whose
// destination was rewritten.
func doorChain(d Doors) chain {
	return chain{name: "door", rules: []rule{
		{toAddr(d.Addr4), tcpTo(d.Proxy), counter(), accept()},
		{toAddr(d.Addr6), tcpTo(d.Proxy), counter(), accept()},
		{toAddr(d.Addr4), tcpTo(d.Resolver), counter(), accept()},
		{toAddr(d.Addr6), tcpTo(d.Resolver), counter(), accept()},
		{toAddr(d.Addr4), udpTo(d.Resolver), counter(), accept()},
		{toAddr(d.Addr6), udpTo(d.Resolver), counter(), accept()},
		{goTo("refuse")},
	}}
}

// redirectRules choose which flows of a slot are redirected. They ask the lists
// of the policy that the rules for direct flows ask.
func redirectRules(c policy.Carry, lists []list, byDefault policy.Verdict) ([]rule, error) {
	direct, divert := rule{goTo(chainDirect)}, rule{goTo("by_port")}
	switch c {
	case policy.CarryNone:
		return byLists(nil, lists, byDefault, direct, rule{accept()}), nil
	case policy.CarryWeb:
		return byLists(nil, lists, byDefault, direct, divert), nil
	case policy.CarryAllWeb:
		return byLists(webTo(goTo("to_proxy")), lists, byDefault, direct, divert), nil
	case policy.CarryTCP:
		// Of TCP only questions for the resolver are not the proxy's.
		return byLists([]rule{{tcpToOther(dnsPort), goTo("to_proxy")}}, lists, byDefault, rule{goTo("upstream")}, divert), nil
	}
	return nil, fmt.Errorf("what shall be carried is %v", c)
}

// undirectRules refuse packets that shall be redirected and were not, because
// their flow is older than the policy, and QUIC, which cannot be.
func undirectRules(c policy.Carry) []rule {
	quic := rule{udpTo(policy.PortHTTPS), goTo("refuse")}
	switch c {
	case policy.CarryAllWeb:
		return append(webTo(goTo("refuse")), quic)
	case policy.CarryTCP:
		return []rule{{isTCP(), goTo("refuse")}, quic}
	}
	return nil
}

func webTo(then statement) []rule {
	return []rule{{tcpTo(policy.PortHTTP), then}, {tcpTo(policy.PortHTTPS), then}}
}

// mustCarry reports whether a policy wants the proxy to carry a flow wherever it
// goes.
func mustCarry(c policy.Carry, f policy.Flow) bool {
	web := f.Dst.Port() == policy.PortHTTP || f.Dst.Port() == policy.PortHTTPS
	return f.Proto == policy.TCP && (c == policy.CarryTCP || c == policy.CarryAllWeb && web)
}
