package proxy

import (
	"net/http"
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
	ruleSecret    = "secret"    // a header's value cannot be had
	ruleHost      = "host"      // a request is for another host than its connection
	ruleProxy     = "proxy"     // it went another way out than flows have to now
	ruleAddress   = "address"   // a name leads to no address that the policy allows
	ruleHandshake = "handshake" // TLS with the sandbox came to nothing
)

// The schemes of requests.
const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
)

// question is what a flow asks its policy.
type question struct {
	name policy.Name // that the sandbox gave
	why  string      // what is wrong with it, if there is none
	// hello says that the name is that of a TLS connection that begins.
	hello bool
	// request is set if a request was seen.
	request *policy.Request
	// cancel ends what is asked for alone; nil means that the flow ends with it.
	cancel func()
}

// destination is where a flow goes: to a port of a name, or to an address. The
// zero destination is nowhere.
type destination struct {
	name policy.Name
	addr netip.AddrPort // with a name only the port counts
	// found says that the policy allows addresses at large and not the name: it
	// must allow the address that is found for the name.
	found bool
	// home says that name is of a public URL of this server, which is not looked
	// up and has no address.
	home bool
}

// judge asks a policy about a destination. By name means that the address is
// one that we have found for it.
func (d destination) judge(p *policy.Policy) policy.Decision {
	switch {
	case d.home:
		return p.DecideFlow(d.name, policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(netip.Addr{}, d.addr.Port())})
	case d.found:
		return p.DecideQuery(d.name)
	case d.name != policy.Name{}:
		return p.DecideName(d.name, policy.TCP, d.addr.Port())
	}
	return p.Decide(policy.Flow{Proto: policy.TCP, Dst: d.addr})
}

// permits reports whether a policy lets a flow live that goes to d and is
// connected to remote, which is not valid if that is not known. To be allowed
// by address is enough: the sandbox could reach the same place without the
// proxy.
func permits(p *policy.Policy, d destination, remote netip.AddrPort) bool {
	byAddress := destination{addr: remote}.judge(p).Verdict == policy.Allow
	if d.judge(p).Verdict != policy.Allow {
		return byAddress
	}
	return byAddress || !d.found || !remote.IsValid()
}

// passes returns the address that decides whether a policy lets a flow go to d
// that is connected to remote; it is not valid if the name alone does, or if it
// is not known.
func (d destination) passes(p *policy.Policy, remote netip.AddrPort) netip.AddrPort {
	switch {
	case d.name == policy.Name{}:
		return d.addr
	case !d.found && d.judge(p).Verdict == policy.Allow:
		return netip.AddrPort{}
	}
	return remote
}

// byName returns the way to a name that a policy leaves.
func byName(p *policy.Policy, name policy.Name, port uint16) destination {
	d := destination{name: name, addr: netip.AddrPortFrom(netip.Addr{}, port), home: p.HomePort(name, port) != 0}
	d.found = !d.home && d.judge(p).Verdict != policy.Allow
	return d
}

// target is where to dial for a destination under a policy, on behalf of src.
func (d destination) target(p *policy.Policy, src netip.Addr) egress.Target {
	t := egress.Target{Name: d.name, Addr: d.addr, Src: src}
	if d.home {
		t.Home = p.HomePort(d.name, d.addr.Port())
		return t
	}
	if up, ok := p.Upstream(); ok {
		t.Through = new(policy.Upstream)
		*t.Through = up
	}
	if d.found {
		t.Permit = func(addr netip.Addr) bool { return permits(p, d, netip.AddrPortFrom(addr, d.addr.Port())) }
	}
	return t
}

// sameWay reports whether two policies send flows to d the same way. What stays
// on the machine takes no way out.
func (d destination) sameWay(p, q *policy.Policy) bool {
	if d.home {
		return true
	}
	a, proxied := p.Upstream()
	b, too := q.Upstream()
	return proxied == too && a.Name == b.Name && a.Addr == b.Addr && a.Port == b.Port && a.Username == b.Username
}

// verdict is what was decided about a flow and why.
type verdict struct {
	allow               bool
	to                  destination // where to connect to, if allowed
	name                policy.Name // that the sandbox gave
	rule, entry, reason string
	generation          uint64
	id                  audit.ID

	team   string
	action policy.Action // for requests
	// seen says that the TLS connection is looked into. Opens are the hosts for
	// which that is so.
	seen  bool
	opens []string
	visit *visit // what the flow does now, if allowed
}

// decide judges what a sandbox wants to do: by what rules say about the
// request, by the name it gave, then by the address that it was connecting to.
func decide(t egress.Tenant, original netip.AddrPort, q question) verdict {
	v := verdict{name: q.name, generation: t.Generation, team: t.Team, id: audit.NewID()}
	if q.hello && t.Policy.Terminates(q.name) {
		v.seen, v.opens = true, t.Policy.Terminated()
	}
	if q.request != nil {
		v.action = t.Policy.Request(*q.request)
		if v.action.Verdict != policy.Allow {
			v.deny(policy.RuleRequests.String(), v.action.Reason())
			v.entry = v.action.Rule
			return v
		}
	}
	v.choose(t.Policy, original, q)
	if v.allow && len(v.action.Inject) > 0 {
		v.guard(q.request.Method)
	}
	if v.allow {
		v.atAddress(t.Policy, q.request)
	}
	return v
}

// atAddress has rules about the address decide, where it is one that the flow
// goes to.
func (v *verdict) atAddress(p *policy.Policy, r *policy.Request) {
	a := p.RequestAt(v.to.passes(p, netip.AddrPort{}), r)
	switch {
	case a.Verdict != policy.Allow:
		v.deny(policy.RuleRequests.String(), a.Reason())
		v.entry = a.Rule
	case a.Rule != "":
		v.action = a
		if len(a.Inject) > 0 {
			v.guard(r.Method)
		}
	}
}

// guard refuses to set headers where others than the server would see them.
func (v *verdict) guard(method string) {
	rule := v.action.Rule
	switch {
	case v.to.name == policy.Name{}:
		v.deny(policy.RuleRequests.String(), "headers are set only in requests to a name, which can be looked up")
	case method == http.MethodTrace:
		v.deny(policy.RuleRequests.String(), "the answer to TRACE would have the headers in it that are set")
	}
	if !v.allow {
		v.entry = rule
	}
}

// choose finds where the flow may go. What rules are about never goes to the
// address of the sandbox's choice: that may be anybody's.
func (v *verdict) choose(p *policy.Policy, original netip.AddrPort, q question) {
	atAddress := destination{addr: original}
	if q.name == (policy.Name{}) {
		v.set(atAddress.judge(p), atAddress)
		if !v.allow {
			v.reason = q.why + "; " + v.reason
		}
		return
	}
	to := destination{name: q.name, addr: original, home: p.HomePort(q.name, original.Port()) != 0}
	v.set(to.judge(p), to)
	if v.allow {
		return
	}
	if v.seen || v.action.Rule != "" || q.request != nil && q.request.Scheme == schemeHTTPS {
		atAddress = destination{name: q.name, addr: original, found: true}
	}
	if d := atAddress.judge(p); d.Verdict == policy.Allow {
		v.set(d, atAddress)
	}
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
