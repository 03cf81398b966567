package app

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

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

	// patience is how long to wait before a kernel that could not be heard is
	// listened to again.
	patience time.Duration
	logger   *slog.Logger

	stop     context.CancelFunc
	watching errgroup.Group
}

// watchDirect records until close. A kernel that cannot tell of flows is no
// reason not to serve.
func watchDirect(c Config, network *kernel.Network, k *carrier, log *audit.Log) *direct {
	ctx, stop := context.WithCancel(context.Background())
	d := &direct{log: log, tenants: &k.tenants, meant: k.queries.Name, patience: time.Second, logger: c.Logger, stop: stop}
	d.watching.Go(func() error {
		d.watch(ctx, network)
		return nil
	})
	return d
}

// flows is the part of a kernel.Network that tells of flows.
type flows interface {
	Watch(ctx context.Context, tell func(kernel.Event)) error
	Lost() uint64
}

// watch records until ctx ends, and begins anew when the kernel cannot be heard.
// For each time that it cannot, from the first failure to the next event, there
// is one record.
func (d *direct) watch(ctx context.Context, from flows) {
	deaf, lost := false, from.Lost()
	tell := func(e kernel.Event) {
		if now := from.Lost(); now != lost {
			lost = now
			d.recordLoss(e.Began, "there were more flows than could be recorded, of one sandbox or of several")
		}
		deaf = false
		d.record(e)
	}
	for {
		err := from.Watch(ctx, tell)
		if ctx.Err() != nil {
			return
		}
		if !deaf {
			deaf = true
			d.logger.Error("flows that the kernel decides about are not recorded until it can be heard again", "error", err)
			d.recordLoss(time.Now(), "the kernel could not be heard for a while, so flows may be missing, of one sandbox or of several")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(d.patience):
		}
	}
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

// recordLoss says that from some moment on there are flows without a record.
func (d *direct) recordLoss(at time.Time, reason string) {
	d.log.Append(audit.Record{Time: at, Protocol: audit.TCP, Rule: ruleLost, Reason: reason})
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
