package control

import (
	"net/http"
	"net/netip"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
)

// explainNetwork asks a sandbox's policy about a flow. It is the value that the
// kernel's rules are made from that answers, and nothing is sent.
func explainNetwork(c *call) error {
	if err := c.sandboxID(); err != nil {
		return err
	}
	var body api.Flow
	if err := c.body(&body, false); err != nil {
		return err
	}
	flow, err := parseFlow(body)
	if err != nil {
		return err
	}
	record, err := c.sandbox()
	if err != nil {
		return err
	}
	compiled, err := c.Compile(record.Network)
	if err != nil {
		return err
	}
	decision := compiled.Decide(flow)
	return c.reply(http.StatusOK, api.Explanation{
		Verdict:    decision.Verdict.String(),
		Rule:       decision.Rule.String(),
		Entry:      decision.Entry,
		Reason:     decision.Reason(),
		Generation: record.Generation,
	})
}

func parseFlow(body api.Flow) (policy.Flow, error) {
	addr, err := netip.ParseAddr(body.Address)
	if err != nil || addr.Zone() != "" {
		return policy.Flow{}, badRequest("address %q is not an IPv4 or IPv6 address", body.Address)
	}
	if body.Port < 0 || body.Port > 65535 {
		return policy.Flow{}, badRequest("port %d is not between 0 and 65535", body.Port)
	}
	flow := policy.Flow{Dst: netip.AddrPortFrom(addr, uint16(body.Port))}
	switch body.Protocol {
	case "", "tcp":
		flow.Proto = policy.TCP
	case "udp":
		flow.Proto = policy.UDP
	case "icmp":
		flow.Proto = policy.ICMP
	default:
		return policy.Flow{}, badRequest("protocol %q is none of tcp, udp, icmp", body.Protocol)
	}
	return flow, nil
}
