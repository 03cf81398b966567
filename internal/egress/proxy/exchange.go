package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress/proxy/head"
	"github.com/moat-sandbox/moat/internal/egress/proxy/rewrite"
	"github.com/moat-sandbox/moat/internal/policy"
)

// exchange is one request and its answer.
type exchange struct {
	*session
	began      time.Time
	request    *head.Request // nil if there was none that can be understood
	verdict    verdict
	change     rewrite.Change
	site       *site // over TLS, while the request is under way
	body       *body // nil if there is none
	keep       bool  // the client expects the connection to stay open
	received   int64 // bytes of the request, without its body
	sentBefore int64 // session.sent when it began

	carried bool           // there was a connection to send it over
	remote  netip.AddrPort // of the server
	status  int            // of the answer

	// Guarded by outMu.
	final     bool // the final answer has begun
	answered  bool // the server has said something
	continued bool // "100 Continue" was sent
}

// serve judges the request and answers it.
func (x *exchange) serve() (more bool) {
	name, why, malformed := x.target()
	if malformed != nil {
		return x.refuse(malformed)
	}
	x.keep = keepsAlive(x.request)
	x.body = x.newBody()
	if x.judge(name, why); !x.verdict.allow {
		x.status, _, _ = x.verdict.refusal()
		x.record() // before the client knows
		more = x.deny()
		return x.settleBody() && more
	}
	more = x.forward()
	more = x.settleBody() && more
	x.record()
	return more
}

// judge decides about the request, and finds out what is to be changed in it.
func (x *exchange) judge(name policy.Name, why string) {
	if x.sni != (policy.Name{}) && name != x.sni {
		x.verdict = x.flow.refusal(ruleHost, fmt.Sprintf("the request is not for %v, for which the connection was opened", x.sni))
		return
	}
	path, _, _ := strings.Cut(x.request.Target, "?")
	x.verdict = x.flow.judge(question{name: name, why: why, request: &policy.Request{
		Scheme: x.scheme(), Method: x.request.Method, Name: name, Addr: x.request.Authority.Addr,
		Port: x.flow.original.Port(), Path: path, SNI: x.sni,
	}})
	x.change = x.flow.changeFor(&x.verdict)
}

// changeFor resolves what rules put into a request that they allow. If that is
// not possible the request is refused.
func (f *flow) changeFor(v *verdict) rewrite.Change {
	if !v.allow {
		return rewrite.Change{}
	}
	change, err := rewrite.New(v.action, v.team, f.proxy.secrets)
	if err != nil {
		rule := v.action.Rule
		v.deny(ruleSecret, err.Error())
		v.entry = rule
	}
	return change
}

func (s *session) scheme() string {
	if s.sni != (policy.Name{}) {
		return schemeHTTPS
	}
	return schemeHTTP
}

// target returns the name that the request is for. Without one, why says so.
func (x *exchange) target() (name policy.Name, why string, malformed *head.Error) {
	a := x.request.Authority
	if own := x.flow.original.Port(); a.Port != 0 && a.Port != own {
		return name, "", &head.Error{
			Status: http.StatusMisdirectedRequest,
			What:   fmt.Sprintf("the request is for port %d, the connection to port %d", a.Port, own),
		}
	}
	switch {
	case a.Addr.IsValid():
		return name, "the request is for an address", nil
	case a.Name == "":
		return name, "the request names no host", nil
	}
	name, err := policy.ParseName(a.Name)
	if err != nil {
		return name, "", &head.Error{Status: http.StatusBadRequest, What: err.Error()}
	}
	return name, "", nil
}

// forward sends the request on and the answer back.
func (x *exchange) forward() (more bool) {
	ctx, cancel := context.WithCancel(x.flow.ctx)
	defer cancel()
	if x.body == nil {
		x.startWatch(ctx, cancel)
	} else {
		x.body.send(func() { x.startWatch(ctx, cancel) })
	}
	answer, err := x.roundTrip(x.outgoing(ctx))
	x.endInterim()
	switch {
	case err != nil:
		return x.fail(ctx, err)
	case answer.StatusCode == http.StatusSwitchingProtocols:
		return x.upgrade(answer)
	}
	return x.answer(answer)
}

// roundTrip sends a request to where the verdict says.
func (x *exchange) roundTrip(r *http.Request) (*http.Response, error) {
	if x.transport != nil {
		return x.transport.RoundTrip(r)
	}
	s, err := x.flow.openSite(x.sni)
	if err != nil {
		return nil, dialError{err}
	}
	x.site = s
	return s.h1.RoundTrip(r)
}

// fail answers for a server that did not.
func (x *exchange) fail(ctx context.Context, err error) (more bool) {
	var before dialError
	switch {
	case ctx.Err() != nil: // the client is gone, or the flow was cut
		x.broken = true
		return false
	case x.body != nil && x.body.failed():
		x.keep = false
		return x.explain(http.StatusBadRequest, "malformed request", "the body of the request is malformed or incomplete")
	case !errors.As(err, &before):
		return x.explain(http.StatusBadGateway, "bad gateway", "the server closed the connection or sent no valid answer")
	}
	x.verdict.fail(before.error)
	switch {
	case !x.verdict.allow:
		return x.deny()
	case isTimeout(before.error):
		return x.explain(http.StatusGatewayTimeout, "gateway timeout", x.verdict.reason)
	}
	return x.explain(http.StatusBadGateway, "bad gateway", x.verdict.reason)
}

// record writes what became of the request.
func (x *exchange) record() {
	if x.site != nil {
		x.site.leave()
		x.site = nil
	}
	x.verdict.overrule(x.flow.finish(x.verdict.visit))
	r := audit.Record{
		Time: x.began, Protocol: audit.HTTP, Dst: x.remote, Status: x.status, Intercepted: x.sni != policy.Name{},
		BytesUp: uint64(x.received), BytesDown: uint64(x.sent.bytes - x.sentBefore),
	}
	if x.body != nil {
		r.BytesUp += uint64(x.body.size())
	}
	if x.request != nil {
		r.Method = x.request.Method
		path, _, _ := strings.Cut(x.request.Target, "?")
		r.Path = strings.Clone(path) // does not keep the query in memory
	}
	if !x.carried {
		x.change = rewrite.Change{}
	}
	x.flow.recordRequest(x.verdict, x.change, r)
}
