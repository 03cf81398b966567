package proxy

import (
	"net"
	"net/netip"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// visit is one thing that a flow does: a connection that is passed through, or
// a request. It is guarded by box.mu.
type visit struct {
	to     destination
	policy *policy.Policy // that has allowed it
	// remote is the address that it is connected to, once it is and if that is
	// known.
	remote netip.AddrPort
	// unseen is the name of a TLS connection that is passed through as it is.
	unseen  policy.Name
	request *policy.Request // nil if none is seen
	action  policy.Action   // for the request
	// carrier is the connection that the request is written to. A cut closes it,
	// as net/http may write a request whose context has ended. Over HTTP/1 nobody
	// else uses it until the visit ends. Over HTTP/2 others do, and it is not set
	// any more when the header is written.
	carrier *net.TCPConn
	// cancel ends the visit alone; nil means that its flow ends with it.
	cancel func()
	ended  *verdict // why it was cut; nil while it was not
}

// judge reports whether a policy lets the visit go on; if not, why.
func (v *visit) judge(next egress.Tenant) (why verdict, permitted bool) {
	why = verdict{generation: next.Generation}
	switch p := next.Policy; {
	case v.unseen != policy.Name{} && p.Terminates(v.unseen):
		why.deny(policy.RuleRequests.String(), "rules decide about requests to "+v.unseen.String()+", which cannot be seen in this connection")
		return why, false
	case !v.to.sameWay(v.policy, p):
		why.deny(ruleProxy, "connections take another way out now")
		return why, false
	case v.request != nil:
		if a := p.Request(*v.request); a.Verdict != policy.Allow {
			why.deny(policy.RuleRequests.String(), a.Reason())
			why.entry = a.Rule
			return why, false
		}
	}
	if permits(next.Policy, v.to, v.remote) {
		a := next.Policy.RequestAt(v.to.passes(next.Policy, v.remote), v.request)
		if a.Verdict != policy.Allow {
			why.deny(policy.RuleRequests.String(), a.Reason())
			why.entry = a.Rule
		}
		return why, a.Verdict == policy.Allow
	}
	to := v.to
	if to.found && to.judge(next.Policy).Verdict == policy.Allow {
		to = destination{addr: v.remote} // names are no matter, the address is
	}
	why.set(to.judge(next.Policy), destination{})
	return why, false
}

// connected says which connection a visit goes over. If the policy does not allow
// where that leads, or has something else done with the request now, the visit
// ends. It reports whether the visit goes on; if so, a cut finds the connection.
func (f *flow) connected(v *visit, conn net.Conn) (permitted bool) {
	tcp, remote := below(conn)
	return f.leads(v, remote, tcp)
}

// leads is connected for a connection to an address; carrier is nil if a cut
// finds the connection without it.
func (f *flow) leads(v *visit, remote netip.AddrPort, carrier *net.TCPConn) (permitted bool) {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	v.remote = remote
	t, err := f.tenant()
	if err != nil || v.ended != nil {
		return false // it was cut already, or is about to be
	}
	why, permitted := v.judge(t)
	if permitted && v.request != nil && t.Policy != v.policy {
		question := question{name: v.request.Name, request: v.request}
		if now := decide(t, f.original, question); !now.action.Same(v.action) {
			why.deny(policy.RuleRequests.String(), "the rules for the request have changed before it was sent")
			permitted = false
		}
	}
	if !permitted {
		f.end(v, why)
		return false
	}
	v.carrier = carrier
	return true
}

// written says that the header of a request is written.
func (f *flow) written(v *visit) {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	v.carrier = nil
}

// drop closes the connection of a visit that is cut. The caller holds box.mu.
func (v *visit) drop() {
	if v.carrier != nil {
		reset(v.carrier)
		v.carrier = nil
	}
}

// end cuts a visit, and the flow unless the visit can end alone. It reports
// whether that was done now. The caller holds box.mu.
func (f *flow) end(v *visit, why verdict) bool {
	switch {
	case v.cancel == nil:
		return f.cut(why)
	case v.ended != nil:
		return false
	}
	v.ended = &why
	v.drop()
	v.cancel()
	return true
}
