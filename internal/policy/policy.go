package policy

import (
	"fmt"
	"iter"
	"net/netip"

	"go4.org/netipx"
)

// Proto is an IP protocol number.
type Proto uint8

// The protocols that can leave a sandbox. ICMP stands for ICMPv6 as well, and
// for echo requests only. Every other protocol, the zero value included, is
// denied.
const (
	ICMP Proto = 1
	TCP  Proto = 6
	UDP  Proto = 17
)

// String returns the protocol's usual name.
func (p Proto) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Flow is what a sandbox wants to do: one connection, or one exchange of
// datagrams, with a destination.
type Flow struct {
	Proto Proto
	// Dst is the address that is really contacted. Addresses taken from
	// dual-stack sockets must be unmapped first: an IPv4-mapped address is
	// never reachable.
	Dst netip.AddrPort
}

// Policy is a compiled document. It is immutable and safe for concurrent use.
// A nil *Policy denies everything.
type Policy struct {
	never       *Never
	allow, deny *list
	names       *names    // the names in allowOut; never nil
	verdict     Verdict   // for what no list names
	rules       *ruleset  // nil for none
	upstream    *Upstream // nil for none
	home        *Home     // nil for none
	strictDNS   bool
}

// Rule is the part of a policy that decided.
type Rule uint8

// In the order in which they are asked, except for RuleDefault which is last.
const (
	RuleNone     Rule = iota // there is no policy
	RuleProtocol             // a protocol that is not offered, or no destination
	RuleName                 // a flow that names cannot allow, or without a usable name
	RuleNever                // the never-reachable table
	RuleQUIC                 // port 443 by UDP, past a proxy that has to see what goes there
	RuleAllowOut
	RuleDenyOut
	RuleRequests // a rule about requests, which alone does not end the matter
	RuleDefault
)

// String returns the rule's name as records show it.
func (r Rule) String() string {
	switch r {
	case RuleProtocol:
		return "protocol"
	case RuleName:
		return "name"
	case RuleNever:
		return "never"
	case RuleQUIC:
		return "quic"
	case RuleAllowOut:
		return fieldAllow
	case RuleDenyOut:
		return fieldDeny
	case RuleRequests:
		return fieldRules
	case RuleDefault:
		return fieldDefault
	}
	return "none"
}

// Decision is the answer about one flow or DNS question. Its zero value denies.
type Decision struct {
	Verdict Verdict
	Rule    Rule
	// Entry is the entry of the list that matched, as it was written.
	Entry string

	by   subject
	flow Flow
	name Name
	why  Range // set for RuleNever
}

// subject is what a decision is about, for the reason.
type subject uint8

const (
	byAddress subject = iota
	byName
	byQuery
)

// Decide answers whether a flow may pass: what is never reachable is denied,
// then allowOut beats denyOut beats the default. An address that a rule names
// is allowed on port 80, where Request is asked about each request that goes
// there, with this address in place of the host that the request names; bytes
// that are no request must not pass. It allocates nothing.
func (p *Policy) Decide(f Flow) Decision {
	if p == nil {
		return Decision{flow: f}
	}
	dst := f.Dst.Addr()
	if !dst.IsValid() || f.Proto != TCP && f.Proto != UDP && f.Proto != ICMP {
		return Decision{Rule: RuleProtocol, flow: f}
	}
	if r, never := p.never.Find(dst); never {
		return Decision{Rule: RuleNever, why: r, flow: f}
	}
	// Clients that are refused QUIC at once fall back to TCP.
	if f.Proto == UDP && f.Dst.Port() == PortHTTPS && p.Carry() >= CarryAllWeb {
		return Decision{Rule: RuleQUIC, flow: f}
	}
	if entry, ok := p.allow.Lookup(dst); ok {
		return Decision{Verdict: Allow, Rule: RuleAllowOut, Entry: entry, flow: f}
	}
	if h := p.rules.find(Name{}, dst); h != nil && f.Proto == TCP && f.Dst.Port() == PortHTTP && h.opens != 0 {
		return Decision{Verdict: Allow, Rule: RuleRequests, Entry: h.entry, flow: f}
	}
	if entry, ok := p.deny.Lookup(dst); ok {
		return Decision{Rule: RuleDenyOut, Entry: entry, flow: f}
	}
	return Decision{Verdict: p.verdict, Rule: RuleDefault, flow: f}
}

// Reason says why, in a sentence for people.
func (d Decision) Reason() string {
	dst := d.flow.Dst.Addr()
	if d.by != byAddress && d.Rule != RuleNone && d.Rule != RuleProtocol {
		return d.nameReason()
	}
	switch d.Rule {
	case RuleProtocol:
		if d.by == byAddress && !dst.IsValid() {
			return "the flow has no destination address"
		}
		return fmt.Sprintf("%v cannot leave a sandbox, only TCP, UDP and ICMP echo can", d.flow.Proto)
	case RuleNever:
		if !d.why.Prefix.IsValid() {
			return fmt.Sprintf("%v is never reachable: %s", dst, d.why.Why)
		}
		return fmt.Sprintf("%v is never reachable: %s (%v)", dst, d.why.Why, d.why.Prefix)
	case RuleQUIC:
		return fmt.Sprintf("%v is reachable by TCP only, where the proxy sees it: QUIC would go past rules about requests and an upstream proxy", d.flow.Dst)
	case RuleAllowOut, RuleDenyOut:
		return fmt.Sprintf("%v is in %v entry %s", dst, d.Rule, d.Entry)
	case RuleRequests:
		return fmt.Sprintf("rules about requests to %v decide", dst)
	case RuleDefault:
		return fmt.Sprintf("%v is in no list and the default is %v", dst, d.Verdict)
	}
	return "no policy is in force"
}

// Never returns the table the policy was compiled with; nil for a nil policy.
func (p *Policy) Never() *Never {
	if p == nil {
		return nil
	}
	return p.never
}

// Ranges is a policy as plain address ranges, for enforcement that has no
// trie. Each slice is sorted, and its ranges neither overlap nor touch. The
// order of evaluation is that of Decide: never-reachable, allow, deny, default.
type Ranges struct {
	Allow4, Allow6 []netipx.IPRange
	Deny4, Deny6   []netipx.IPRange
	Default        Verdict
}

// Ranges returns the address ranges of the policy. A nil policy has none and
// denies by default.
func (p *Policy) Ranges() Ranges {
	if p == nil {
		return Ranges{}
	}
	return Ranges{
		Allow4: join(p.allow.AllSorted4()), Allow6: join(p.allow.AllSorted6()),
		Deny4: join(p.deny.AllSorted4()), Deny6: join(p.deny.AllSorted6()),
		Default: p.verdict,
	}
}

// join makes ranges of prefixes, which come in order: by their first address, the
// shorter before the longer. So what begins within the latest range also ends
// there, because of two prefixes one contains the other or they are apart.
func join(prefixes iter.Seq2[netip.Prefix, string]) (ranges []netipx.IPRange) {
	for prefix := range prefixes {
		next := netipx.RangeOfPrefix(prefix)
		last := len(ranges) - 1
		switch {
		case last < 0 || ranges[last].To().Less(next.From().Prev()):
			ranges = append(ranges, next)
		case ranges[last].To().Less(next.From()): // it begins where the latest ends
			ranges[last] = netipx.IPRangeFrom(ranges[last].From(), next.To())
		}
	}
	return ranges
}

// split separates the families; a set's ranges are sorted with IPv4 first.
func split(set *netipx.IPSet) (v4, v6 []netipx.IPRange) {
	all := set.Ranges()
	for i, r := range all {
		if r.From().Is6() {
			return all[:i:i], all[i:]
		}
	}
	return all, nil
}

func everything4() []netipx.IPRange { return []netipx.IPRange{netipx.RangeOfPrefix(all4)} }
func everything6() []netipx.IPRange { return []netipx.IPRange{netipx.RangeOfPrefix(all6)} }
