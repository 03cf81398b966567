package proxy

import (
	"fmt"
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
	name string
	addr netip.AddrPort // with a name only the port counts
}

// flow returns the question to ask a policy.
func (d destination) flow() policy.Flow {
	if d.name != "" {
		return policy.Flow{Proto: policy.TCP, Name: d.name, Dst: netip.AddrPortFrom(netip.Addr{}, d.addr.Port())}
	}
	return policy.Flow{Proto: policy.TCP, Dst: d.addr}
}

// permits reports whether a policy lets a flow live that goes to d and is
// connected to remote. To be allowed by address is enough: the sandbox could
// reach the same place without the proxy.
func permits(p *policy.Policy, d destination, remote netip.AddrPort) bool {
	return p.Decide(d.flow()).Verdict == policy.Allow ||
		p.Decide(destination{addr: remote}.flow()).Verdict == policy.Allow
}

// verdict is what was decided about a flow and why.
type verdict struct {
	allow bool
	to    destination // where to connect to, if allowed
	// name is the name that the sandbox gave, in canonical form.
	name                string
	rule, entry, reason string
	generation          uint64
	id                  audit.ID
}

// decide judges what a sandbox wants to do: by the name it gave, then by the
// address that it was connecting to. Without a name, why says what is wrong.
func decide(t egress.Tenant, original netip.AddrPort, name, why string) verdict {
	named := destination{name: name, addr: original}
	plain := destination{addr: original}
	v := verdict{name: name, generation: t.Generation, id: audit.NewID()}
	byAddress := t.Policy.Decide(plain.flow())
	if name == "" {
		v.set(byAddress, plain)
		if !v.allow {
			v.reason = fmt.Sprintf("%s; %s", why, v.reason)
		}
		return v
	}
	byName := t.Policy.Decide(named.flow())
	if byName.Verdict != policy.Allow && byAddress.Verdict == policy.Allow {
		v.set(byAddress, plain)
	} else {
		v.set(byName, named)
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
