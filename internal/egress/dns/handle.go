package dns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Query is one query of a sandbox and what was decided about it.
type Query struct {
	Sandbox    string
	Generation uint64 // of the policy in force
	Name       string // canonical if it is valid, otherwise escaped; empty if there is none
	Type       string // "A", "HTTPS", "TYPE65280"; empty if there is none
	Verdict    policy.Verdict
	// Rule is what decided: a rule of the policy, or RuleQuery.
	Rule string
	// Entry is the entry of the policy that matched, if one did.
	Entry  string
	Reason string
	// Began is when the query came, Duration how long its answer took.
	Began    time.Time
	Duration time.Duration
}

// RuleQuery is the rule of queries that are refused as such, whatever the
// policy says: malformed ones, those of other kinds, those over a limit.
const RuleQuery = "query"

// Observer is told of every query of a sandbox that is replied to. It must not
// block, and is safe for concurrent use.
type Observer interface {
	ObserveQuery(Query)
}

// exchange is a message of a sandbox on its way to a reply.
type exchange struct {
	server    *Server
	tenant    egress.Tenant
	client    *client
	admission admission
	message   *message
	problem   problem
	seen      Query
	holds     time.Time // until when the reply is the same; zero: that is not known
}

// overLimit is the problem with a query that comes too soon.
var overLimit = problem{wire.RcodeRefused, "too many queries of this sandbox"}

// admit reads a message if the sandbox may send one more. It returns nil if
// there must be no reply; otherwise the exchange must be finished.
func (s *Server) admit(t egress.Tenant, c *client, packet []byte) *exchange {
	began := time.Now()
	admission := c.admit(began)
	if admission == dropped {
		return nil
	}
	m, problem := parseMessage(packet)
	if m == nil {
		c.release(admission)
		return nil
	}
	if admission == refused {
		problem = overLimit
	}
	e := &exchange{server: s, tenant: t, client: c, admission: admission, message: m, problem: problem}
	e.seen = Query{Sandbox: t.Sandbox, Generation: t.Generation, Rule: RuleQuery, Began: began}
	if len(m.question) == 1 {
		e.seen.Name = printable(m.question[0].Name)
		e.seen.Type = wire.Type(m.question[0].Qtype).String()
	}
	return e
}

// begin asks the policy and obeys. Where name servers have to be asked it
// returns the flight to complete the exchange with, otherwise the reply.
func (e *exchange) begin() (*wire.Msg, *flight) {
	if e.problem.why != "" {
		return e.refuse(e.problem), nil
	}
	asked := e.message.question[0]
	name, err := policy.ParseName(asked.Name)
	if err != nil {
		e.seen.Reason = err.Error()
		return e.nonexistent(), nil
	}
	decision := e.tenant.Policy.DecideQuery(name)
	e.seen.Name, e.seen.Verdict = name.String(), decision.Verdict
	e.seen.Rule, e.seen.Entry, e.seen.Reason = decision.Rule.String(), decision.Entry, decision.Reason()
	if decision.Verdict != policy.Allow {
		return e.pretend(name), nil
	}
	if e.tenant.Policy.IsPublicURL(name) {
		return e.home(), nil
	}
	return nil, e.server.resolver.start(question{name, asked.Qtype})
}

// finish gives the sandbox its place back, tells the observer and packs the
// reply. It may be as long as limit, or if that is 0, as the message says.
func (e *exchange) finish(reply *wire.Msg, limit int) []byte {
	e.client.release(e.admission)
	e.server.observe(e.seen, e.seen.Began)
	if limit == 0 {
		limit = e.message.size
	}
	return e.message.pack(reply, limit)
}

// refuse replies to what no policy needs to be asked about.
func (e *exchange) refuse(p problem) *wire.Msg {
	e.seen.Reason = p.why
	reply := e.message.reply(p.rcode)
	explain(reply, wire.ExtendedErrorCodeOther, p.why)
	return reply
}

// nonexistent says that there is no such name, and why.
func (e *exchange) nonexistent() *wire.Msg {
	reply := e.message.reply(wire.RcodeNameError)
	explain(reply, wire.ExtendedErrorCodeBlocked, e.seen.Reason)
	return reply
}

// pretend replies for a name that the policy does not allow, out of our head.
func (e *exchange) pretend(name policy.Name) *wire.Msg {
	asked := e.message.question[0]
	if e.tenant.StrictDNS {
		return e.nonexistent()
	}
	reply := e.message.reply(wire.RcodeSuccess)
	if asked.Qtype == wire.TypeA {
		now := time.Now()
		e.holds = now.Add(memoTime)
		addr, ok := e.client.pretend(name.String(), now)
		if !ok {
			return e.nonexistent()
		}
		reply.Answer = []wire.RR{&wire.A{
			Hdr: wire.RR_Header{
				Name:   asked.Name,
				Rrtype: wire.TypeA,
				Class:  wire.ClassINET,
				Ttl:    uint32(syntheticTTL / time.Second),
			},
			A: addr.AsSlice(),
		}}
	}
	explain(reply, wire.ExtendedErrorCodeForgedAnswer, e.seen.Reason)
	return reply
}

// homeTTL is for how long a public URL is said to keep its address, which it
// always does.
const homeTTL = 5 * time.Minute

// home replies for a public URL of this server: what name servers say about it is
// meant for others, who do not come from within.
func (e *exchange) home() *wire.Msg {
	asked := e.message.question[0]
	reply := e.message.reply(wire.RcodeSuccess)
	header := wire.RR_Header{Name: asked.Name, Rrtype: asked.Qtype, Class: wire.ClassINET, Ttl: uint32(homeTTL / time.Second)}
	home4, home6 := policy.HomeAddrs()
	switch asked.Qtype {
	case wire.TypeA:
		reply.Answer = []wire.RR{&wire.A{Hdr: header, A: home4.AsSlice()}}
	case wire.TypeAAAA:
		reply.Answer = []wire.RR{&wire.AAAA{Hdr: header, AAAA: home6.AsSlice()}}
	}
	return reply
}

// complete replies with what name servers say.
func (e *exchange) complete(ctx context.Context, f *flight) *wire.Msg {
	asked := e.message.question[0]
	answer, err := f.wait(ctx)
	if err != nil {
		e.server.log.Debug("resolve for a sandbox", "sandbox", e.tenant.Sandbox, "error", err)
		e.seen.Reason += "; " + unavailable(err)
		reply := e.message.reply(wire.RcodeServerFailure)
		explain(reply, wire.ExtendedErrorCodeNoReachableAuthority, unavailable(err))
		return reply
	}
	now := time.Now()
	e.holds = answer.holds(now)
	reply := e.message.reply(answer.Rcode)
	reply.Answer = answer.aged(answer.Records, now)
	reply.Ns = answer.aged(answer.Authority, now)
	for _, rr := range reply.Answer {
		// Some programs compare the name with what they wrote, case and all.
		if h := rr.Header(); strings.EqualFold(h.Name, asked.Name) {
			h.Name = asked.Name
		}
	}
	if answer.Forbidden != nil {
		text := answer.Forbidden.Error()
		explain(reply, wire.ExtendedErrorCodeBlocked, text)
		e.seen.Reason += "; left out of the answer: " + text
		if len(answer.addrs()) == 0 && (asked.Qtype == wire.TypeA || asked.Qtype == wire.TypeAAAA) {
			e.seen.Verdict, e.seen.Rule = policy.Deny, policy.RuleNever.String()
			e.seen.Reason = fmt.Sprintf("%s resolves to %s", e.seen.Name, text)
		}
	}
	return reply
}

// unavailable says what sandboxes are told when a lookup fails: nothing about
// the servers of the node.
func unavailable(err error) string {
	if errors.Is(err, errBusy) {
		return errBusy.Error()
	}
	return egress.ErrNoAnswer.Error()
}

// printable shortens a name that may be anything; it is escaped already.
func printable(name string) string {
	const limit = 300
	if len(name) > limit {
		return name[:limit] + "..."
	}
	return strings.TrimSuffix(name, ".")
}
