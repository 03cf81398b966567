package policy

import "net/netip"

// DecideFlow answers about a flow that says which name it is for, as kernel and
// proxy do together: either the name or the address may allow it, unless the
// address that the sandbox contacts is never reachable. One that stands for a
// forbidden name counts as none of these. An invalid address is one that is not
// known yet; then what holds for addresses at large counts, and the address that
// the name turns out to have may still be denied. That is what counts too where
// rules decide about requests to the name: those never go to an address of the
// sandbox's choice, and the one given is taken for one that the name has. So it is
// with a public URL of this server, which by name has no address at all. It
// allocates nothing.
func (p *Policy) DecideFlow(name Name, f Flow) Decision {
	if f.Proto == TCP && isHome(f.Dst.Addr()) && p.HomePort(name, f.Dst.Port()) != 0 {
		f.Dst = netip.AddrPortFrom(netip.Addr{}, f.Dst.Port())
	}
	if p != nil && !Synthetic().Contains(f.Dst.Addr()) {
		if r, never := p.never.Find(f.Dst.Addr()); never && f.Dst.Addr().IsValid() {
			return Decision{Rule: RuleNever, why: r, flow: f}
		}
	}
	d := p.DecideName(name, f.Proto, f.Dst.Port())
	if p == nil || d.Verdict == Allow || d.Rule == RuleProtocol {
		return d
	}
	ruled := f.Proto == TCP && p.judges(name, f.Dst.Port())
	if ruled && p.DecideQuery(name).Verdict != Allow {
		return d
	}
	if f.Dst.Addr().IsValid() {
		if by := p.Decide(f); by.Verdict == Allow || ruled && by.Rule != RuleNever {
			return by
		}
		return d
	}
	if others := p.others(); others.Verdict == Allow {
		others.by, others.name = byName, name
		others.flow = Flow{Proto: f.Proto, Dst: netip.AddrPortFrom(netip.Addr{}, f.Dst.Port())}
		return others
	}
	return d
}
