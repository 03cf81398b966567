package ingress

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moat-sandbox/moat/api"
)

// forward passes a request on that was let in, and streams the answer back.
func (x *exchange) forward(w http.ResponseWriter, g grant) *failure {
	ctx, cancel := context.WithCancelCause(x.request.Context())
	defer cancel(nil)
	x.answer = &answer{ResponseWriter: w, x: x, stop: cancel}
	if err := x.up.enter(x.answer, x.in.maxInFlight); err != nil {
		return x.in.explain(err, x.route.address)
	}
	defer x.up.leave(x.answer)
	if fail := x.recheckNow(); fail != nil {
		return fail
	}
	x.record.Verdict, x.record.Reason = Allowed, g.reason
	if !g.until.IsZero() {
		end := time.AfterFunc(time.Until(g.until), func() { x.up.withdraw(x.answer, linkExpired(x.route.address)) })
		defer end.Stop()
	}
	for _, t := range x.meter.tallies {
		t.inFlight.Add(1)
		defer t.inFlight.Add(-1)
	}
	x.stream(x.request.WithContext(ctx))
	return nil
}

// stream lets the request and its answer flow until both have ended. It panics
// with http.ErrAbortHandler when the answer breaks off.
func (x *exchange) stream(r *http.Request) {
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		// Let the answer begin before the request has ended. Every writer of
		// net/http's HTTP/1 server can do it.
		_ = http.NewResponseController(x.answer.ResponseWriter).EnableFullDuplex()
	}
	broken := true // unless the end is reached: the proxy panics when an answer breaks
	defer func() { x.answer.end(r, broken) }()
	proxy := httputil.ReverseProxy{
		Rewrite:        x.rewrite,
		Transport:      x.up,
		FlushInterval:  -1, // at once
		BufferPool:     &x.in.buffers,
		ModifyResponse: x.tidy,
		ErrorHandler:   x.fail,
		ErrorLog:       x.in.proxyLog,
	}
	proxy.ServeHTTP(x.answer, r)
	x.linger(r)
	broken = false
}

// tidy changes what clients must not get as the app said it.
func (x *exchange) tidy(answer *http.Response) error {
	if answer.StatusCode == http.StatusNoContent {
		answer.Header.Del("Content-Length") // of a body that never comes
	}
	x.confine(answer)
	return nil
}

// rewrite turns the request as it came into the one that the sandbox gets.
// Hop-by-hop headers are already gone.
func (x *exchange) rewrite(pr *httputil.ProxyRequest) {
	out, port := pr.Out, x.route.port
	x.cleanHeaders(out.Header)
	x.cleanUpgrade(out.Header)
	pr.SetXForwarded()
	if x.route.by == byPath {
		out.Header.Set("X-Forwarded-Prefix", x.route.prefix)
		out.URL.Path = strings.TrimPrefix(out.URL.Path, x.route.prefix)
		out.URL.RawPath = strings.TrimPrefix(out.URL.RawPath, x.route.prefix)
	}
	out.URL.Scheme = x.target.scheme(port)
	out.URL.Host = netip.AddrPortFrom(x.target.Addr, port).String()
	// As it was sent: not every app reads semicolons and percent signs as we do.
	out.URL.RawQuery, _ = cutLink(pr.In.URL.RawQuery)
	out.URL.ForceQuery = pr.In.URL.ForceQuery
	out.Host = pr.In.Host
	if x.target.MaskHost != "" && port != api.GuestPort {
		out.Host = strings.ReplaceAll(x.target.MaskHost, "${PORT}", strconv.Itoa(int(port)))
	}
	// Shared, because the server fills it in only after the body.
	out.Trailer = pr.In.Trailer
	x.cleanTrailers(out.Trailer)
	if out.Body != nil {
		x.body.ReadCloser, x.body.meter = out.Body, &x.meter
		x.body.ended = func() { x.cleanTrailers(out.Trailer) }
		out.Body = &x.body
	}
}

// fail answers for a sandbox that did not.
func (x *exchange) fail(_ http.ResponseWriter, _ *http.Request, err error) {
	if x.request.Context().Err() != nil || x.answer.upgraded() {
		panic(http.ErrAbortHandler) // nobody is listening any more
	}
	f := x.answer.withdrawn()
	switch {
	case f != nil:
	case x.up.life.Err() != nil:
		f = x.in.explain(errEnded, x.route.address)
	case x.body.failed.Load():
		f = x.in.explain(errClientBody, x.route.address)
	default:
		f = x.in.explain(err, x.route.address)
	}
	x.in.log.Debug("sandbox gave no answer", "sandbox", x.route.id, "port", x.route.port, "error_code", f.Code, "err", err)
	x.record.Failure, x.record.Status = f.Code, f.Status
	x.in.refuse(x.answer.ResponseWriter, x.request, f, &x.up.tally)
}

// errClientBody: the client's own request ended badly.
var errClientBody = errors.New("reading the request's body failed")

// explain turns an error on the way into a sandbox into the answer for it.
func (in *Ingress) explain(err error, addr address) *failure {
	var before dialError
	switch {
	case errors.Is(err, errEnded):
		return notFound(addr)
	case errors.Is(err, errStopping):
		return stopping(addr)
	case errors.Is(err, errBusy):
		return tooMany(addr, in.maxInFlight)
	case errors.Is(err, errClientBody):
		return badRequest("The request's body is malformed or incomplete")
	case isNotTLS(err):
		return upstreamTLS(addr)
	case !errors.As(err, &before):
		return upstreamReset(addr)
	case errors.Is(err, syscall.ECONNREFUSED):
		return portClosed(addr)
	case isTimeout(err):
		return upstreamTimeout(addr)
	}
	return upstreamUnreachable(addr)
}

func isTimeout(err error) bool {
	var slow net.Error
	return errors.As(err, &slow) && slow.Timeout()
}
