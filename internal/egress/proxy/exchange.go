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
	"github.com/moat-sandbox/moat/internal/policy"
)

// exchange is one request and its answer.
type exchange struct {
	*session
	began      time.Time
	request    *head.Request // nil if there was none that can be understood
	verdict    verdict
	body       *body // nil if there is none
	keep       bool  // the client expects the connection to stay open
	received   int64 // bytes of the request, without its body
	sentBefore int64 // session.sent when it began

	remote netip.AddrPort // of the server
	status int            // of the answer

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
	x.verdict = x.flow.judge(name, why)
	x.keep = keepsAlive(x.request)
	x.body = x.newBody()
	if !x.verdict.allow {
		x.status = http.StatusForbidden
		x.record() // before the client knows
		more = x.deny()
		return x.settleBody() && more
	}
	more = x.forward()
	more = x.settleBody() && more
	x.record()
	return more
}

// target returns the name that the request is for. Without one, why says so.
func (x *exchange) target() (name policy.Name, why string, malformed *head.Error) {
	a := x.request.Authority
	if a.Port != 0 && a.Port != policy.PortHTTP {
		return name, "", &head.Error{
			Status: http.StatusBadRequest,
			What:   fmt.Sprintf("the request is for port %d, the connection to port %d", a.Port, policy.PortHTTP),
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
	answer, err := x.transport.RoundTrip(x.outgoing(ctx))
	x.endInterim()
	switch {
	case err != nil:
		return x.fail(ctx, err)
	case answer.StatusCode == http.StatusSwitchingProtocols:
		return x.upgrade(answer)
	}
	return x.answer(answer)
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
	x.verdict.overrule(x.flow.finish())
	r := audit.Record{
		Time: x.began, Protocol: audit.HTTP, Dst: x.remote, Status: x.status,
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
	x.flow.record(x.verdict, r)
}
