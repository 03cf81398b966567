package control

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
)

// maxReplayed bounds how many flows of each kind a replay lists.
const maxReplayed = 100

// replayKey is what makes two records the same flow: where it goes, by name if
// it has one.
type replayKey struct {
	protocol audit.Protocol
	name     string
	dst      netip.AddrPort // of a flow with a name only the port
	refused  bool           // by the candidate
}

// replay holds a candidate against what was recorded of the sandbox.
func (c *call) replay(candidate *policy.Policy) *api.Replay {
	out := audit.Out
	filter := audit.Filter{Sandbox: c.id, Direction: &out, Limit: audit.MaxLimit}
	found := make(map[replayKey]*api.ReplayedFlow)
	answer := &api.Replay{}
	for {
		page := c.Flows.Query(filter)
		for _, r := range page.Records {
			answer.Records++
			hold(found, candidate, r)
		}
		if len(page.Records) < audit.MaxLimit {
			break
		}
		filter.Since = page.Next
	}
	var refused, allowed []api.ReplayedFlow
	for key, flow := range found {
		if key.refused {
			refused = append(refused, *flow)
		} else {
			allowed = append(allowed, *flow)
		}
	}
	answer.Refused, answer.Omitted = mostFrequent(refused, 0)
	answer.Allowed, answer.Omitted = mostFrequent(allowed, answer.Omitted)
	return answer
}

// hold holds a candidate against one record and notes what it would change.
func hold(found map[replayKey]*api.ReplayedFlow, candidate *policy.Policy, r audit.Record) {
	asked, ok := fromRecord(r, candidate.Never())
	if !ok {
		return
	}
	decision := asked.decide(candidate)
	refused := decision.Verdict == policy.Deny
	if refused == (r.Verdict == policy.Deny) {
		return
	}
	key := replayKey{protocol: r.Protocol, name: r.Name, dst: r.Dst, refused: refused}
	if r.Name != "" {
		key.dst = netip.AddrPortFrom(netip.Addr{}, r.Dst.Port())
	}
	flow := found[key]
	if flow == nil {
		flow = &api.ReplayedFlow{Protocol: string(r.Protocol), Name: r.Name, Port: r.Dst.Port(), Decision: decision.view()}
		if addr := key.dst.Addr(); addr.IsValid() {
			flow.Address = addr.String()
		}
		found[key] = flow
	}
	flow.Count++
	if at := shown(r.Time); at.After(flow.Last) {
		flow.Last = at
	}
}

// policyRules are those by which a policy itself refuses. What was refused for
// another reason, no policy lets pass.
var policyRules = []string{
	policy.RuleName.String(), policy.RuleQUIC.String(), policy.RuleAllowOut.String(), policy.RuleDenyOut.String(), policy.RuleRequests.String(), policy.RuleDefault.String(),
}

// fromRecord asks about what was recorded.
func fromRecord(r audit.Record, never *policy.Never) (q question, ok bool) {
	if r.Verdict == policy.Deny && !slices.Contains(policyRules, r.Rule) {
		return q, false
	}
	q.dst, q.recorded = r.Dst, true
	if r.Name != "" {
		name, err := policy.ParseName(r.Name)
		if err != nil {
			return q, false
		}
		q.name = name
		// Where a name was refused, its address is one that we made up.
		if never.Contains(r.Dst.Addr()) {
			q.dst = netip.AddrPortFrom(netip.Addr{}, r.Dst.Port())
		}
	}
	switch r.Protocol {
	case audit.TCP, audit.TLS, audit.HTTP:
		q.proto = policy.TCP
	case audit.UDP:
		q.proto = policy.UDP
	case audit.ICMP:
		q.proto = policy.ICMP
	case audit.DNS:
		q.dns = true
	}
	q.request = recordedRequest(r, q)
	return q, q.dns || q.name != policy.Name{} || q.dst.Addr().IsValid()
}

// mostFrequent sorts flows and adds to omitted those that are too many.
func mostFrequent(flows []api.ReplayedFlow, omitted int) ([]api.ReplayedFlow, int) {
	slices.SortFunc(flows, func(a, b api.ReplayedFlow) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), b.Last.Compare(a.Last), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
	if extra := len(flows) - maxReplayed; extra > 0 {
		return flows[:maxReplayed], omitted + extra
	}
	return append([]api.ReplayedFlow{}, flows...), omitted // an empty list is [], not null
}
