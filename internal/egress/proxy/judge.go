package proxy

import (
	"net/netip"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// What the proxy refuses of its own accord appears in records under these
// rules, beside those of the policy.
const (
	ruleEnded     = "ended"     // the sandbox has no policy any more
	ruleLimit     = "limit"     // it has too much open already
	ruleMalformed = "malformed" // what it sent has no one meaning
)

// destination is where a flow goes: to a port of a name, or to an address. The
// zero destination is nowhere.
type destination struct {
	name policy.Name
	addr netip.AddrPort // with a name only the port counts
}

// judge asks a policy about a destination. By name means that the address is
// one that we have found for it.
func (d destination) judge(p *policy.Policy) policy.Decision {
	if d.name != (policy.Name{}) {
		return p.DecideName(d.name, policy.TCP, d.addr.Port())
	}
	return p.Decide(policy.Flow{Proto: policy.TCP, Dst: d.addr})
}

// permits reports whether a policy lets a flow live that goes to d and is
// connected to remote. To be allowed by address is enough: the sandbox could
// reach the same place without the proxy.
func permits(p *policy.Policy, d destination, remote netip.AddrPort) bool {
	return d.judge(p).Verdict == policy.Allow || destination{addr: remote}.judge(p).Verdict == policy.Allow
}

// verdict is what was decided about a flow and why.
type verdict struct {
	allow               bool
	to                  destination // where to connect to, if allowed
	name                policy.Name // that the sandbox gave
	rule, entry, reason string
	generation          uint64
	id                  audit.ID
}

// decide judges what a sandbox wants to do: by the name it gave, then by the
// address that it was connecting to. Without a name, why says what is wrong.
func decide(t egress.Tenant, original netip.AddrPort, name policy.Name, why string) verdict {
	v := verdict{name: name, generation: t.Generation, id: audit.NewID()}
	byName, byAddress := destination{name, original}, destination{addr: original}
	if name == (policy.Name{}) {
		v.set(byAddress.judge(t.Policy), byAddress)
		if !v.allow {
			v.reason = why + "; " + v.reason
		}
		return v
	}
	v.set(byName.judge(t.Policy), byName)
	if !v.allow {
		if d := byAddress.judge(t.Policy); d.Verdict == policy.Allow {
			v.set(d, byAddress)
		}
	}
	return v
}

func (v *verdict) set(d policy.Decision, to destination) {
	v.allow = d.Verdict == policy.Allow
	v.rule, v.entry, v.reason = d.Rule.String(), d.Entry, d.Reason()
	if v.allow {
		v.to = to
	}
}

// deny turns a verdict into a refusal.
func (v *verdict) deny(rule, reason string) {
	v.allow, v.to = false, destination{}
	v.rule, v.entry, v.reason = rule, "", reason
}
