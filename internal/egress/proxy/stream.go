package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress/proxy/head"
	"github.com/moat-sandbox/moat/internal/egress/proxy/rewrite"
	"github.com/moat-sandbox/moat/internal/policy"
)

// stream is one request over HTTP/2 and its answer. Requests on a connection
// are judged each by itself, and end each by itself.
type stream struct {
	flow    *flow
	w       http.ResponseWriter
	request *http.Request
	name    policy.Name // for whom the connection was opened
	began   time.Time
	verdict verdict
	change  rewrite.Change
	site    *site // while the answer is under way

	carried  bool           // there was a connection to send it over
	remote   netip.AddrPort // of the server
	status   int            // of the answer
	up, down atomic.Int64   // bytes of the bodies

	mu       sync.Mutex
	answered bool // interim answers come too late; guarded by mu
}

// beginStream counts a request in. That there are too many (errStreams) is for
// the client to know.
func (f *flow) beginStream() error {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	switch {
	case f.leaving || f.ended != nil:
		return errEnded
	case f.box.streams >= f.proxy.limits.Connections:
		return errStreams
	}
	f.box.streams++
	f.streams.Add(1)
	return nil
}

// endStream counts a request out.
func (f *flow) endStream() {
	f.box.mu.Lock()
	f.box.streams--
	f.box.mu.Unlock()
	f.streams.Done()
}

// serveStream is the handler of HTTP/2 on connections that are looked into.
func serveStream(w http.ResponseWriter, r *http.Request) {
	f, ok := r.Context().Value(flowKey{}).(*flow)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	switch err := f.beginStream(); {
	case errors.Is(err, errStreams):
		w.Header().Set("Retry-After", "1")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	case err != nil:
		panic(http.ErrAbortHandler)
	}
	defer f.endStream()
	name, err := policy.ParseName(r.TLS.ServerName)
	if err != nil {
		panic(http.ErrAbortHandler) // cannot be: it was read before the handshake
	}
	x := &stream{flow: f, w: w, request: r, name: name, began: time.Now()}
	x.serve()
}

// serve judges the request and answers it.
func (x *stream) serve() {
	name, path, err := x.read()
	var malformed *head.Error
	switch {
	case errors.As(err, &malformed):
		x.refuse(malformed)
		return
	case name != x.name:
		x.verdict = x.flow.refusal(ruleHost, fmt.Sprintf("the request is not for %v, for which the connection was opened", x.name))
		x.deny()
		return
	}
	ctx, cancel := context.WithCancel(x.request.Context())
	defer cancel()
	x.verdict = x.flow.judge(question{name: name, cancel: cancel, request: &policy.Request{
		Scheme: schemeHTTPS, Method: x.request.Method, Name: name, Port: x.flow.original.Port(), Path: path, SNI: x.name,
	}})
	if x.change = x.flow.changeFor(&x.verdict); !x.verdict.allow {
		x.deny()
		return
	}
	err = x.forward(ctx)
	x.record()
	if err != nil {
		panic(http.ErrAbortHandler) // resets the stream and leaves the connection
	}
}

// read returns the name and path that the request is for. The error is an
// *head.Error.
func (x *stream) read() (name policy.Name, path string, err error) {
	r := x.request
	if r.Method == http.MethodConnect {
		return name, "", &head.Error{Status: http.StatusMethodNotAllowed, What: "this is not a proxy: CONNECT is refused"}
	}
	if host := r.Header["Host"]; len(host) > 1 || len(host) == 1 && host[0] != r.Host {
		return name, "", &head.Error{Status: http.StatusBadRequest, What: "Host and :authority differ"}
	}
	if err := head.CheckPath(r.Method, r.RequestURI); err != nil {
		return name, "", err
	}
	a, err := head.ParseAuthority(r.Host)
	own := x.flow.original.Port()
	switch {
	case err != nil:
		return name, "", err
	case a.Port != 0 && a.Port != own:
		return name, "", &head.Error{Status: http.StatusMisdirectedRequest, What: fmt.Sprintf("the request is for port %d, the connection to port %d", a.Port, own)}
	}
	path, _, _ = strings.Cut(r.RequestURI, "?")
	name, _ = policy.ParseName(a.Name) // what is no name is not that of the connection
	return name, path, nil
}

// forward sends the request on and the answer back. An error means that the
// client must not take what it got for a whole answer.
func (x *stream) forward(ctx context.Context) error {
	answer, err := x.roundTrip(ctx)
	x.endInterim()
	if err == nil {
		defer x.site.leave()
		return x.answer(answer)
	}
	var before dialError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !errors.As(err, &before):
		x.explain(http.StatusBadGateway, "bad gateway", "the server closed the connection or sent no valid answer")
		return nil
	}
	x.verdict.fail(before.error)
	switch {
	case !x.verdict.allow:
		x.explain(x.verdict.refusal())
	case isTimeout(before.error):
		x.explain(http.StatusGatewayTimeout, "gateway timeout", x.verdict.reason)
	default:
		x.explain(http.StatusBadGateway, "bad gateway", x.verdict.reason)
	}
	return nil
}

// roundTrip sends the request to the server. If there is an answer it goes over
// the stream's site, which is left when it has come to its end.
func (x *stream) roundTrip(ctx context.Context) (*http.Response, error) {
	s, err := x.flow.openSite(x.name)
	if err != nil {
		return nil, dialError{err}
	}
	answer, err := s.h2.RoundTrip(x.outgoing(ctx))
	if err == nil && (answer.StatusCode < http.StatusOK || answer.StatusCode > 999) {
		err = errors.Join(fmt.Errorf("the server answers with status %d", answer.StatusCode), answer.Body.Close())
	}
	if err != nil {
		s.leave()
		return nil, err
	}
	x.site = s
	return answer, nil
}

// outgoing writes the request anew.
func (x *stream) outgoing(ctx context.Context) *http.Request {
	in := x.request
	r := &http.Request{
		Method: in.Method,
		URL:    rawURL(schemeHTTPS, destination{name: x.name, addr: x.flow.original}.hostPort(), x.change.Target(in.RequestURI)),
		Host:   x.flow.authority(x.name),
		Header: endToEnd(in.Header),
	}
	delete(r.Header, "Host")
	if te := in.Header["Te"]; len(te) == 1 && te[0] == "trailers" {
		r.Header["Te"] = te
	}
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // or net/http would send its own
	}
	x.change.Header(r.Header)
	if in.ContentLength != 0 {
		for name := range in.Trailer {
			if !head.CanTrail(name) {
				delete(in.Trailer, name)
			}
		}
		x.change.Trailer(in.Trailer)
		r.Body, r.ContentLength, r.Trailer = counted{in.Body, &x.up}, in.ContentLength, in.Trailer
	}
	trace := &httptrace.ClientTrace{
		GotConn:        x.gotConn,
		WroteHeaders:   func() { x.flow.written(x.verdict.visit) },
		Got1xxResponse: x.interim,
	}
	return r.WithContext(httptrace.WithClientTrace(ctx, trace))
}

// gotConn learns which connection the request goes over. A request that was cut
// is not written.
func (x *stream) gotConn(info httptrace.GotConnInfo) {
	_, x.remote = below(info.Conn)
	if x.carried = x.flow.connected(x.verdict.visit, info.Conn); !x.carried {
		x.verdict.visit.cancel()
	}
}

// counted counts what is read of a body.
type counted struct {
	io.ReadCloser
	bytes *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}

// interim passes on what a server says before its answer.
func (x *stream) interim(status int, h textproto.MIMEHeader) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.answered || status == http.StatusContinue {
		return nil
	}
	own := x.w.Header()
	for name, values := range endToEnd(http.Header(h)) {
		own[name] = values
	}
	x.w.WriteHeader(status)
	clear(own)
	return nil
}

func (x *stream) endInterim() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.answered = true
}

// answer sends the server's answer to the client, with what follows the body.
func (x *stream) answer(r *http.Response) error {
	defer r.Body.Close()
	x.status = r.StatusCode
	h := x.w.Header()
	for name, values := range endToEnd(r.Header) {
		h[name] = values
	}
	for _, name := range []string{"Date", "Content-Type"} {
		if _, ok := h[name]; !ok {
			h[name] = nil // or net/http would make its own
		}
	}
	announced := maps.Clone(r.Trailer)
	for name := range announced {
		h.Add("Trailer", name)
	}
	x.w.WriteHeader(r.StatusCode)
	if r.Body != http.NoBody {
		if err := x.copyBody(r); err != nil {
			return err
		}
	}
	for name, values := range r.Trailer {
		if _, ok := announced[name]; !ok {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
	return nil
}

// copyBody passes on what comes as it comes.
func (x *stream) copyBody(r *http.Response) error {
	page, ok := x.flow.proxy.pages.Get().(*[pageSize]byte)
	if !ok {
		page = new([pageSize]byte)
	}
	control := http.NewResponseController(x.w)
	if r.ContentLength < 0 {
		if err := control.Flush(); err != nil { // the first byte may be long in coming
			return err
		}
	}
	for {
		n, err := r.Body.Read(page[:])
		sent := x.down.Add(int64(n))
		if n > 0 {
			if _, failed := x.w.Write(page[:n]); failed != nil {
				return failed
			}
			if sent != r.ContentLength { // the last part goes with the end
				if failed := control.Flush(); failed != nil {
					return failed
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			// Only now: a write that has failed may still be read from.
			x.flow.proxy.pages.Put(page)
			return nil
		case err != nil:
			return err
		}
	}
}

// deny answers a request that is not let through.
func (x *stream) deny() {
	status, what, reason := x.verdict.refusal()
	x.status = status
	x.record() // before the client knows
	x.explain(status, what, reason)
}

// refuse answers what has no one meaning.
func (x *stream) refuse(malformed *head.Error) {
	x.verdict = x.flow.refusal(ruleMalformed, malformed.What)
	x.status = malformed.Status
	x.record()
	x.explain(malformed.Status, "malformed request", malformed.What)
}

// explain sends an answer of our own.
func (x *stream) explain(status int, what, reason string) {
	x.status, x.verdict.reason = status, reason
	e := explanation{Error: what, Reason: reason, Rule: x.verdict.rule, Decision: x.verdict.id.String(), Host: x.request.Host}
	text := e.text()
	h := x.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	x.w.WriteHeader(status)
	_, _ = x.w.Write(text) // who does not read it is gone
}

// record writes what became of the request.
func (x *stream) record() {
	x.verdict.overrule(x.flow.finish(x.verdict.visit))
	path, _, _ := strings.Cut(x.request.RequestURI, "?")
	if !x.carried {
		x.change = rewrite.Change{}
	}
	x.flow.recordRequest(x.verdict, x.change, audit.Record{
		Time: x.began, Protocol: audit.HTTP, Dst: x.remote, Status: x.status, Intercepted: true,
		Method: x.request.Method, Path: strings.Clone(path),
		BytesUp: uint64(x.up.Load()), BytesDown: uint64(x.down.Load()),
	})
}
