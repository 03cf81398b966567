package control

import (
	"net/netip"
	"net/url"

	"golang.org/x/net/http/httpguts"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
)

// This file asks rules about requests, for explanations and replays.

// opinion is what a policy says about a question: about the flow, and about the
// request on it if there is one.
type opinion struct {
	policy.Decision
	action policy.Action // of the rule that matched, if one did
	denied bool          // by rules, whatever the lists say
	each   bool          // rules about the address decide about each request
}

// decide asks as the proxy does: what rules deny is denied, and all else is for
// the lists.
func (q question) decide(p *policy.Policy) opinion {
	a := opinion{Decision: q.decideFlow(p)}
	byAddress := a.Verdict == policy.Allow && q.byAddress(p)
	if q.request.Scheme == "" {
		none := p.RequestAt(q.dst, nil)
		switch {
		case !byAddress || none.Verdict == policy.Allow:
			return a
		case q.recorded: // and no request was seen
			return opinion{action: none, denied: true}
		}
		a.each = true
		return a
	}
	action := p.Request(q.request)
	if action.Verdict == policy.Allow && action.Rule == "" && byAddress {
		action = p.RequestAt(q.dst, &q.request)
	}
	if action.Verdict == policy.Deny {
		return opinion{action: action, denied: true}
	}
	if a.Verdict == policy.Allow {
		a.action = action
	}
	return a
}

// byAddress reports whether it is the address that allows a flow that is allowed.
func (q question) byAddress(p *policy.Policy) bool {
	return q.proto == policy.TCP && !q.dns && (q.name == policy.Name{} || p.DecideName(q.name, q.proto, q.dst.Port()).Verdict != policy.Allow)
}

func (o opinion) view() api.Decision {
	if o.denied {
		return api.Decision{Verdict: policy.Deny.String(), Rule: policy.RuleRequests.String(), Entry: o.action.Rule, Reason: o.action.Reason()}
	}
	view := api.Decision{Verdict: o.Verdict.String(), Rule: o.Decision.Rule.String(), Entry: o.Entry, Reason: o.Decision.Reason()}
	if o.each {
		view.Reason += "; rules decide about each request to that address"
	}
	if o.action.Rule == "" {
		return view
	}
	view.Change = &api.RequestChange{Rule: o.action.Rule, StripCredentials: o.action.Strip}
	for _, i := range o.action.Inject {
		view.Change.Headers = append(view.Change.Headers, i.Header)
	}
	return view
}

// requestTo is a request for a URL. Where rules do not count it has no scheme.
func requestTo(u *url.URL, method string, q question) policy.Request {
	return webRequest(u.Scheme == "https" || u.Scheme == "wss", method, u.EscapedPath(), q.name, q.dst)
}

// webRequest is a request over a connection for the host that it is for.
func webRequest(tls bool, method, path string, name policy.Name, dst netip.AddrPort) policy.Request {
	r := policy.Request{Scheme: "http", Method: method, Name: name, Port: dst.Port(), Path: path}
	if tls {
		r.Scheme, r.SNI = "https", name
	}
	if name == (policy.Name{}) {
		r.Addr = dst.Addr()
	}
	if path == "" {
		r.Path = "/"
	}
	if r.Port != policy.PortHTTP && r.Port != policy.PortHTTPS {
		return policy.Request{}
	}
	return r
}

// readMethod is GET unless something else is said.
func readMethod(method string) (string, error) {
	switch {
	case method == "":
		return "GET", nil
	case !httpguts.ValidHeaderFieldName(method): // methods are tokens as well
		return "", badRequest("method %q is not a method", clip(method))
	}
	return method, nil
}

// recordedRequest is what was recorded of a request; without scheme where it is
// of something else.
func recordedRequest(r audit.Record, q question) policy.Request {
	if r.Protocol != audit.HTTP || r.Method == "" {
		return policy.Request{}
	}
	return webRequest(q.dst.Port() == policy.PortHTTPS, r.Method, r.Path, q.name, q.dst)
}
