package app

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/policy"
)

// direct writes flows that the kernel decided about by itself into the audit
// log: those that went past proxy and resolver, and those that it refused.
type direct struct {
	log     *audit.Log
	tenants interface {
		Last(netip.Addr) (egress.Tenant, bool)
	}
	// meant tells the name that an address of policy.Synthetic stands for.
	meant func(sandbox string, addr netip.Addr) (string, bool)

	stop     context.CancelFunc
	watching errgroup.Group
}

// watchDirect records until close. A kernel that cannot tell of flows is no
// reason not to serve.
func watchDirect(c Config, network *kernel.Network, k *carrier, log *audit.Log) *direct {
	ctx, stop := context.WithCancel(context.Background())
	d := &direct{log: log, tenants: &k.tenants, meant: k.queries.Name, stop: stop}
	d.watching.Go(func() error {
		var lost uint64
		err := network.Watch(ctx, func(e kernel.Event) {
			if now := network.Lost(); now != lost {
				lost = now
				d.recordLoss(e)
			}
			d.record(e)
		})
		if err != nil {
			c.Logger.Error("flows that the kernel decides about are not recorded any more", "error", err)
		}
		return nil
	})
	return d
}

func (d *direct) close() {
	d.stop()
	_ = d.watching.Wait()
}

// Rules of records that no entry of a policy is the reason for.
const (
	ruleEnded = "ended" // the sandbox, or its policy, was there no more
	ruleLimit = "limit" // the sandbox has too much of something
	ruleLost  = "lost"  // flows that there is no record of
)

// recordLoss says that there are flows without a record, from before an event.
func (d *direct) recordLoss(e kernel.Event) {
	d.log.Append(audit.Record{
		Time: e.Began, Protocol: audit.TCP, Rule: ruleLost,
		Reason: "there were more flows than could be recorded, of one sandbox or of several",
	})
}

// record writes what became of a flow. Slots that wait for a sandbox have none.
func (d *direct) record(e kernel.Event) {
	t, ok := d.tenants.Last(e.Src)
	if !ok {
		return
	}
	r := audit.Record{
		Time: e.Began, Sandbox: t.Sandbox, Protocol: protocolOf(e.Proto), Dst: e.Dst,
		Generation: t.Generation, BytesUp: e.BytesUp, BytesDown: e.BytesDown, Duration: e.Duration,
	}
	now := d.judge(t, e, &r)
	r.Rule, r.Entry, r.Reason = now.Rule.String(), now.Entry, now.Reason()
	switch {
	case e.Outcome == kernel.Ended:
		r.Verdict = policy.Allow
		if now.Verdict != policy.Allow { // it ended while that changed
			r.Rule, r.Entry, r.Reason = ruleEnded, "", "it was allowed when it began"
		}
	case t.Policy == nil:
		r.Rule, r.Reason = ruleEnded, "the sandbox has ended"
	case e.Outcome == kernel.RefusedSandbox:
		r.Rule, r.Reason = policy.RuleNever.String(), fmt.Sprintf("%v is in the network of the sandboxes, and they do not reach each other", e.Dst.Addr())
	case e.Outcome == kernel.RefusedLimit:
		r.Rule, r.Entry, r.Reason = ruleLimit, "", fmt.Sprintf("the sandbox has more than %d flows", kernel.MaxFlows)
	case e.Outcome == kernel.RefusedNode && now.Verdict == policy.Allow:
		r.Rule, r.Entry, r.Reason = policy.RuleNever.String(), "", fmt.Sprintf("%v is an address of the machine that runs the sandbox", e.Dst.Addr())
	case now.Verdict == policy.Allow:
		r.Rule, r.Entry, r.Reason = ruleEnded, "", "it is older than the policy, which wants such flows to pass the proxy"
	case e.Outcome == kernel.Cut:
		r.Reason = "cut by an update of the policy: " + r.Reason
	}
	d.log.Append(r)
}

// judge decides about a flow by the policy that is in force now, by its name if
// the address stands for one.
func (d *direct) judge(t egress.Tenant, e kernel.Event, r *audit.Record) policy.Decision {
	if text, ok := d.meant(t.Sandbox, e.Dst.Addr()); ok {
		if name, err := policy.ParseName(text); err == nil {
			r.Name = name.String()
			return t.Policy.DecideName(name, e.Proto, e.Dst.Port())
		}
	}
	return t.Policy.Decide(policy.Flow{Proto: e.Proto, Dst: e.Dst})
}

func protocolOf(p policy.Proto) audit.Protocol {
	switch p {
	case policy.TCP, policy.UDP, policy.ICMP:
		return audit.Protocol(p.String())
	}
	return audit.Protocol(fmt.Sprintf("ip-%d", uint8(p)))
}
