package proxy

import (
	"errors"
	"fmt"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/proxy/rewrite"
	"github.com/moat-sandbox/moat/internal/policy"
)

// record writes what became of a connection or request. What r holds already
// stays.
func (f *flow) record(v verdict, r audit.Record) {
	r.ID = v.id
	r.Sandbox = f.box.sandbox
	if r.Time.IsZero() {
		r.Time = f.began
	}
	r.Duration = time.Since(r.Time)
	if !r.Dst.IsValid() {
		r.Dst = f.original
	}
	r.Name = v.name.String()
	if v.allow {
		r.Verdict = policy.Allow
	}
	r.Rule, r.Entry, r.Reason, r.Generation = v.rule, v.entry, v.reason, v.generation
	f.proxy.audit.Append(r)
}

// recordRequest writes what became of a request, and what was put into it. Rules
// may ask to leave out requests that they have allowed.
func (f *flow) recordRequest(v verdict, change rewrite.Change, r audit.Record) {
	if v.allow && v.action.Audit == policy.AuditNone {
		return
	}
	r.Matched, r.Injected = v.action.Rule, change.Names()
	f.record(v, r)
}

// overrule replaces a verdict by the one that has ended the flow since.
func (v *verdict) overrule(end *verdict) {
	if end == nil {
		return
	}
	v.deny(end.rule, end.reason)
	v.entry = end.entry
	if end.generation != 0 {
		v.generation = end.generation
	}
}

// fail turns a verdict into what a failed dial makes of it: a refusal if the
// name leads only where nobody, or this sandbox, may go; otherwise it stays, and says what
// happened.
func (v *verdict) fail(err error) {
	v.reason = explain(err)
	var forbidden *egress.ForbiddenError
	if errors.As(err, &forbidden) {
		v.deny(policy.RuleNever.String(), v.reason)
	}
	var other *egress.NotPermittedError
	if errors.As(err, &other) {
		v.deny(ruleAddress, v.reason)
	}
}

// explain says why a dial failed, in words that a sandbox may read: errors of
// the net package tell addresses of the node.
func explain(err error) string {
	var reasoned interface{ Reason() string }
	var forbidden *egress.ForbiddenError
	var other *egress.NotPermittedError
	switch {
	case errors.As(err, &reasoned):
		return reasoned.Reason()
	case errors.As(err, &other):
		return other.Error()
	case errors.Is(err, errEnded), errors.Is(err, errNotAllowed), errors.Is(err, errSites):
		return err.Error()
	case errors.As(err, &forbidden):
		return forbidden.Error()
	}
	return "the destination cannot be connected to"
}

// recordRefusal records that a connection beyond the limits was reset.
func (p *Proxy) recordRefusal(tenant egress.Tenant, why error) {
	b := p.boxes.open(tenant.Sandbox)
	defer p.boxes.release(b)
	now := time.Now()
	n := b.refuse(now)
	if n == 0 {
		return
	}
	reason := why.Error()
	if n > 1 {
		reason = fmt.Sprintf("%s; %d connections were refused since this was last recorded", reason, n)
	}
	p.audit.Append(audit.Record{
		ID: audit.NewID(), Time: now, Sandbox: tenant.Sandbox, Protocol: audit.TCP,
		Rule: ruleLimit, Reason: reason, Generation: tenant.Generation,
	})
}
