package policy

import (
	"fmt"
	"net/netip"
)

// The ports on which names count: those where a connection itself says which
// name it is for, in the Host header and in the SNI.
const (
	PortHTTP  = 80
	PortHTTPS = 443
)

// Names reports whether names open anything, in allowOut or in rules, so that
// connections and DNS questions have to be judged by name.
func (p *Policy) Names() bool {
	return p != nil && (len(p.names.patterns) > 0 || p.rules != nil && p.rules.opens)
}

// DecideName answers whether allowOut or a rule lets a name be reached on a
// port, at whatever address the one who asks finds for it. Names count for TCP
// on ports 80 and 443 only, and where the public URLs of this server are. What a rule opens, it opens for the requests that
// Request allows. It allocates nothing.
//
// Only names allow here. A denial says nothing about addresses: who knows the
// address that a flow is for asks Decide as well, and either may allow. Whether
// an address found for an allowed name is never reachable is for the one who
// connects to it.
func (p *Policy) DecideName(name Name, proto Proto, port uint16) Decision {
	d := Decision{flow: Flow{Proto: proto, Dst: netip.AddrPortFrom(netip.Addr{}, port)}, name: name, by: byName}
	switch {
	case p == nil:
		return d
	case proto != TCP && proto != UDP && proto != ICMP:
		d.Rule = RuleProtocol
		return d
	}
	port = p.countsAs(name, port)
	if name == (Name{}) || proto != TCP || port != PortHTTP && port != PortHTTPS {
		d.Rule = RuleName
		return d
	}
	if entry, ok := p.names.Lookup(name.text); ok {
		d.Verdict, d.Rule, d.Entry = Allow, RuleAllowOut, entry
		return d
	}
	if h := p.rules.find(name, netip.Addr{}); h != nil && h.opens&portsAt(port) != 0 {
		d.Verdict, d.Rule, d.Entry = Allow, RuleRequests, h.entry
		return d
	}
	d.Rule = RuleDefault
	if others := p.others(); others.Verdict == Deny {
		d.Rule, d.Entry = others.Rule, others.Entry
	}
	return d
}

// DecideQuery answers whether a name may be asked for in the DNS on behalf of
// the sandbox: what allowOut or a rule opens may, and nothing else unless addresses at
// large are open anyway. It allocates nothing.
func (p *Policy) DecideQuery(name Name) Decision {
	d := Decision{name: name, by: byQuery}
	switch {
	case p == nil:
		return d
	case name == Name{}:
		d.Rule = RuleName
		return d
	}
	if entry, ok := p.names.Lookup(name.text); ok {
		d.Verdict, d.Rule, d.Entry = Allow, RuleAllowOut, entry
		return d
	}
	if h := p.rules.find(name, netip.Addr{}); h != nil && h.opens != 0 {
		d.Verdict, d.Rule, d.Entry = Allow, RuleRequests, h.entry
		return d
	}
	others := p.others()
	d.Verdict, d.Rule, d.Entry = others.Verdict, others.Rule, others.Entry
	return d
}

// others decides about addresses that no narrower entry names, in the family
// that is more open.
func (p *Policy) others() Decision {
	if entry, ok := p.allow.Get(all4); ok {
		return Decision{Verdict: Allow, Rule: RuleAllowOut, Entry: entry}
	}
	if entry, ok := p.allow.Get(all6); ok {
		return Decision{Verdict: Allow, Rule: RuleAllowOut, Entry: entry}
	}
	if entry, ok := p.deny.Get(all4); ok { // means both families
		return Decision{Rule: RuleDenyOut, Entry: entry}
	}
	return Decision{Verdict: p.verdict, Rule: RuleDefault}
}

// nameReason is Reason for a decision about a name.
func (d Decision) nameReason() string {
	switch {
	case d.Rule == RuleName && d.by == byQuery:
		return "the question is not for a valid name"
	case d.Rule == RuleName && d.name == Name{}:
		return "the flow does not say which name it is for"
	case d.Rule == RuleName:
		return fmt.Sprintf("names in %s work for TCP on ports 80 and 443 only, so %v cannot be reached by name on %s", fieldAllow, d.name, d.port())
	case d.Rule == RuleAllowOut && d.Verdict == Allow:
		return fmt.Sprintf("%s in %s allows %v", d.Entry, fieldAllow, d.name)
	case d.Rule == RuleRequests && d.by == byQuery:
		return fmt.Sprintf("%s in %s is reachable, and covers %v", d.Entry, fieldRules, d.name)
	case d.Rule == RuleRequests:
		return fmt.Sprintf("%s in %s covers %v, and decides about each request", d.Entry, fieldRules, d.name)
	case d.Rule == RuleDefault && d.Verdict == Allow:
		return fmt.Sprintf("%v is in no list and the default is %v", d.name, d.Verdict)
	}
	return fmt.Sprintf("no entry of %s names %v", fieldAllow, d.name)
}

func (d Decision) port() string {
	if d.flow.Proto == ICMP {
		return d.flow.Proto.String()
	}
	return fmt.Sprintf("%v port %d", d.flow.Proto, d.flow.Dst.Port())
}
