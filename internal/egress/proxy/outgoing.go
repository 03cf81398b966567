package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/moat-sandbox/moat/internal/egress/proxy/head"
	"github.com/moat-sandbox/moat/internal/policy"
)

const (
	// maxIdle is how many servers a session stays connected to at a time.
	maxIdle        = 4
	serverIdleTime = 90 * time.Second
	// continueTime is how long a server may take to ask for a body that is held
	// back. Not all servers ask.
	continueTime  = time.Second
	maxAnswerHead = 256 << 10 // bytes
)

// newTransport makes a way to servers that changes nothing, and waits for them
// as long as their clients do.
func newTransport() *http.Transport {
	return &http.Transport{
		Protocols:              new(http.Protocols),
		DisableCompression:     true,
		IdleConnTimeout:        serverIdleTime,
		ExpectContinueTimeout:  continueTime,
		MaxResponseHeaderBytes: maxAnswerHead,
	}
}

// newTransport makes the way to servers in the clear. Which address is
// connected to is not up to it: it knows names and asks the flow.
func (s *session) newTransport() *http.Transport {
	t := newTransport()
	t.Protocols.SetHTTP1(true)
	t.DialContext = s.dial
	t.MaxIdleConns, t.MaxIdleConnsPerHost = maxIdle, 1
	return t
}

// dial is what the transport calls for a new connection. Only two things can be
// asked for: a name, or the address that the client was connecting to. The
// context is the flow's: a connection that comes too late for this request
// serves the next.
func (s *session) dial(_ context.Context, _, address string) (net.Conn, error) {
	to := destination{addr: s.flow.original}
	if address != to.hostPort() {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		name, err := policy.ParseName(host)
		if err != nil {
			return nil, err
		}
		if to, err = s.flow.wayTo(name); err != nil {
			return nil, dialError{err}
		}
	}
	up, err := s.flow.dial(to)
	if err != nil {
		return nil, dialError{err}
	}
	return up, nil
}

// errNotAllowed ends what an update has denied in this moment.
var errNotAllowed = errors.New("the policy does not allow the name any more")

// wayTo returns how a name is reached under the policy that is in force now.
func (f *flow) wayTo(name policy.Name) (destination, error) {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	t, err := f.tenant()
	if err != nil {
		return destination{}, err
	}
	to := byName(t.Policy, name, f.original.Port())
	if to.judge(t.Policy).Verdict != policy.Allow {
		return destination{}, errNotAllowed
	}
	return to, nil
}

// dialError marks what went wrong before anything was sent.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// hostPort names a destination to the transport, which passes it to dial and
// keeps connections by it.
func (d destination) hostPort() string {
	if d.name != (policy.Name{}) {
		return fmt.Sprintf("%v:%d", d.name, d.addr.Port())
	}
	return d.addr.String()
}

// outgoing writes the request anew.
func (x *exchange) outgoing(ctx context.Context) *http.Request {
	r := &http.Request{
		Method: x.request.Method,
		URL:    x.url(),
		Host:   x.host(),
		Header: endToEnd(x.request.Header),
		// Or the transport would not wait with a body that is held back.
		ProtoMajor: 1, ProtoMinor: 1,
	}
	if kept := upgrades(x.request.Header); kept != "" {
		r.Header["Connection"] = []string{"Upgrade"}
		r.Header["Upgrade"] = []string{kept}
	}
	if httpguts.HeaderValuesContainsToken(x.request.Header["Te"], "trailers") {
		r.Header["Te"] = []string{"trailers"}
	}
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // or net/http would send its own
	}
	if !x.request.Continue {
		delete(r.Header, "Expect")
	}
	x.change.Header(r.Header)
	if x.body != nil {
		x.change.Trailer(x.body.trailer)
		r.Body, r.ContentLength, r.Trailer = x.body, x.request.Length, x.body.trailer
		if r.ContentLength == head.Chunked {
			r.TransferEncoding = []string{"chunked"}
		}
	}
	trace := &httptrace.ClientTrace{
		GotConn:              x.gotConn,
		GotFirstResponseByte: x.answering,
		Got100Continue:       x.askForBody,
		Got1xxResponse:       x.interim,
	}
	return r.WithContext(httptrace.WithClientTrace(ctx, trace))
}

// url returns the URL that makes net/http send the target as the client did.
func (x *exchange) url() *url.URL {
	return rawURL(x.scheme(), x.verdict.to.hostPort(), x.change.Target(x.request.Target))
}

func rawURL(scheme, host, target string) *url.URL {
	u := &url.URL{Scheme: scheme, Host: host, Opaque: target}
	if strings.HasPrefix(u.Opaque, "//") { // would be sent with the scheme in front
		path, query, hasQuery := strings.Cut(u.Opaque, "?")
		u.Opaque, u.RawQuery, u.ForceQuery = "", query, hasQuery && query == ""
		u.Path, u.RawPath = path, path
		if plain, err := url.PathUnescape(path); err == nil {
			u.Path = plain
		}
	}
	return u
}

// host is the Host that the server is sent: what was judged, not another way
// to write it.
func (x *exchange) host() string {
	a := x.request.Authority
	a.Port = 0
	if a.Name != "" {
		return x.flow.authority(x.verdict.name)
	}
	return a.String()
}

// authority is how a name is asked for on the flow: with the port, unless that
// goes without saying.
func (f *flow) authority(name policy.Name) string {
	port := f.original.Port()
	if port == policy.PortHTTP || port == policy.PortHTTPS {
		return name.String()
	}
	return fmt.Sprintf("%v:%d", name, port)
}

// gotConn learns which connection the request goes over. It closes that if the
// request was cut: net/http would write it even so.
func (x *exchange) gotConn(info httptrace.GotConnInfo) {
	_, x.remote = below(info.Conn)
	if x.carried = x.flow.connected(x.verdict.visit, info.Conn); !x.carried {
		_ = info.Conn.Close() // nothing was written that could be lost
	}
}
