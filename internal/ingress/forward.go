package ingress

import (
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"github.com/moat-sandbox/moat/api"
)

// exchange is one request on its way to a sandbox.
type exchange struct {
	in     *Ingress
	up     *upstream
	target Target
	addr   address
	answer *answer
	body   clientBody
}

// forward passes a request on and streams the answer back.
func (in *Ingress) forward(w http.ResponseWriter, r *http.Request, up *upstream, target Target, addr address) *failure {
	x := &exchange{in: in, up: up, target: target, addr: addr, answer: &answer{ResponseWriter: w, up: up}}
	if err := up.enter(x.answer, in.maxInFlight); err != nil {
		return in.explain(err, addr)
	}
	defer up.leave(x.answer)
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		// Let the answer begin before the request has ended. Every writer of
		// net/http's HTTP/1 server can do it.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	broken := true // unless the end is reached: the proxy panics when an answer breaks
	defer func() {
		if broken {
			x.answer.abandon(r)
		}
	}()
	proxy := httputil.ReverseProxy{
		Rewrite:       x.rewrite,
		Transport:     up,
		FlushInterval: -1, // at once
		BufferPool:    &in.buffers,
		ErrorHandler:  x.fail,
		ErrorLog:      in.proxyLog,
	}
	proxy.ServeHTTP(x.answer, r)
	x.linger(r)
	broken = false
	return nil
}

// rewrite turns the request as it came into the one that the sandbox gets.
// Hop-by-hop headers are already gone.
func (x *exchange) rewrite(pr *httputil.ProxyRequest) {
	out := pr.Out
	x.cleanHeaders(out.Header)
	x.cleanUpgrade(out.Header)
	pr.SetXForwarded()
	out.URL.Scheme = "http"
	out.URL.Host = netip.AddrPortFrom(x.target.Addr, x.addr.port).String()
	// As it was sent: not every app reads semicolons and percent signs as we do.
	out.URL.RawQuery = pr.In.URL.RawQuery
	out.URL.ForceQuery = pr.In.URL.ForceQuery
	out.Host = pr.In.Host
	if x.target.MaskHost != "" && x.addr.port != api.GuestPort {
		out.Host = strings.ReplaceAll(x.target.MaskHost, "${PORT}", strconv.Itoa(int(x.addr.port)))
	}
	// Shared, because the server fills it in only after the body.
	out.Trailer = pr.In.Trailer
	if out.Body != nil {
		x.body.ReadCloser = out.Body
		out.Body = &x.body
	}
}

// fail answers for a sandbox that did not.
func (x *exchange) fail(_ http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil || x.answer.upgraded() {
		panic(http.ErrAbortHandler) // nobody is listening any more
	}
	switch {
	case x.up.life.Err() != nil:
		err = errEnded
	case x.body.failed.Load():
		err = errClientBody
	}
	f := x.in.explain(err, x.addr)
	x.in.log.Debug("sandbox gave no answer", "sandbox", x.addr.id, "port", x.addr.port, "error_code", f.Code, "err", err)
	f.write(x.answer.ResponseWriter, r)
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
