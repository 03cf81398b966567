package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Request is what a sandbox asks of a web server. Whoever makes one has parsed
// Host or :authority strictly, and has refused a request that contradicts
// itself.
type Request struct {
	Scheme string // "http" or "https"
	Method string
	// Name is the host that the request is for, and Addr is set instead if that
	// is an address.
	Name Name
	Addr netip.Addr
	Port uint16
	// Path is the path as it was sent, up to the query.
	Path string
	// SNI is the name that the TLS connection was opened for; the zero Name
	// over plain HTTP.
	SNI Name
}

// Action is what is to be done with a request. Its zero value denies.
type Action struct {
	Verdict Verdict
	// Rule is the rule that decided: its name, or in E2B's shape its host as
	// written. Empty if no rule did.
	Rule string
	// Inject are the headers to set, each in place of all of that name. It must
	// not be changed.
	Inject []Injection
	// Strip removes the sandbox's own credentials first: see CredentialHeader
	// and CredentialParameter.
	Strip bool
	Audit Audit

	name Name
	addr netip.Addr
	why  outcome
}

// Same reports whether two actions do the same to a request, by the same rule.
func (a Action) Same(b Action) bool {
	return a.Verdict == b.Verdict && a.Rule == b.Rule && a.Strip == b.Strip && a.Audit == b.Audit &&
		slices.EqualFunc(a.Inject, b.Inject, func(x, y Injection) bool { return x.Header == y.Header && x.Value.same(y.Value) })
}

// Injection is a header to set.
type Injection struct {
	Header string // in canonical form
	Value  Template
}

// Audit says how much of a request goes into its record.
type Audit uint8

// Whatever the level, a record never has values of headers, queries or bodies.
const (
	AuditMetadata Audit = iota
	AuditFull
	AuditNone
)

// outcome is how an Action came about.
type outcome uint8

const (
	noPolicy outcome = iota
	notHTTP
	misdirected
	badPath
	noRule
	noMatch
	noRequest
	byRule
)

// Request answers what rules say about a request. It is asked about every
// request that can be seen, beside DecideName and Decide and not in their
// place: rules in E2B's shape open nothing. A request to a host that rules are
// about must be sent over a connection made by name, to an address that was
// looked up for it, and over verified TLS if it came over TLS: never to an
// address of the sandbox's choice. Where Decide is what allows the flow, it
// must allow the address found as well.
//
// It allocates nothing unless there are rules about paths and the request has
// one in an unusual form.
func (p *Policy) Request(r Request) Action {
	a := Action{name: r.Name, addr: r.Addr}
	if p == nil {
		return a
	}
	on := portsOf(r.Scheme, p.countsAs(r.Name, r.Port))
	if on == 0 {
		a.why = notHTTP
		return a
	}
	if on == onHTTPS && r.SNI != r.Name {
		a.why = misdirected
		return a
	}
	h := p.rules.find(r.Name, r.Addr)
	if h == nil || h.decides&on == 0 {
		a.Verdict, a.why = Allow, noRule
		return a
	}
	return h.apply(r, on, a)
}

// RequestAt answers what rules about an address say about a request that is sent
// to it, whatever host the request names: that is the sandbox's to choose. It is
// asked beside Request where the address, and not a name, is what allows a flow.
// A nil request stands for anything else on the flow. Rules cannot judge that,
// so it passes only where none is about the address.
func (p *Policy) RequestAt(to netip.AddrPort, r *Request) Action {
	if p == nil {
		return Action{}
	}
	if !to.IsValid() || to.Port() != PortHTTP { // where rules are never about addresses
		return Action{Verdict: Allow, why: noRule, addr: to.Addr()}
	}
	at := Request{Scheme: "http", Addr: to.Addr(), Port: to.Port()}
	if r != nil {
		at.Method, at.Path = r.Method, r.Path
	}
	a := p.Request(at)
	if r == nil && a.why != noRule {
		return Action{why: noRequest, addr: at.Addr}
	}
	return a
}

// Terminates reports whether TLS connections for a name must be opened, so that
// Request can be asked about what is in them. All others pass untouched.
func (p *Policy) Terminates(name Name) bool {
	return p.judges(name, PortHTTPS)
}

// judges reports whether rules decide about the requests to a name on a port.
func (p *Policy) judges(name Name, port uint16) bool {
	if p == nil {
		return false
	}
	h := p.rules.find(name, netip.Addr{})
	return h != nil && h.decides&portsAt(p.countsAs(name, port)) != 0
}

// Terminated returns the hosts for which Terminates may be true, each a name or
// *.name in normal form. It must not be changed.
func (p *Policy) Terminated() []string {
	if p == nil || p.rules == nil {
		return nil
	}
	return p.rules.terminated
}

// SecretNames returns the names of all secrets that rules refer to, sorted.
func (p *Policy) SecretNames() []string {
	if p == nil || p.rules == nil {
		return nil
	}
	return p.rules.secrets
}

// Rules reports whether there are rules about requests, so that all HTTP and
// HTTPS flows have to be seen.
func (p *Policy) Rules() bool { return p != nil && !p.rules.empty() }

// Reason says why, in a sentence for people. It repeats nothing of the request
// but its host.
func (a Action) Reason() string {
	host := a.name.String()
	if a.addr.IsValid() {
		host = a.addr.String()
	}
	switch a.why {
	case notHTTP:
		return fmt.Sprintf("requests are HTTP on port %d or HTTPS on port %d", PortHTTP, PortHTTPS)
	case misdirected:
		return fmt.Sprintf("the request is for %s, the connection for another host", host)
	case badPath:
		return "the path of the request is not valid"
	case noRule:
		return fmt.Sprintf("no rule is about %s", host)
	case noMatch:
		return fmt.Sprintf("no rule for %s matches the request", host)
	case noRequest:
		return fmt.Sprintf("rules decide about each request to %s, and this is none", host)
	case byRule:
		if a.Verdict == Allow {
			return fmt.Sprintf("rule %s allows the request", a.Rule)
		}
		return fmt.Sprintf("rule %s denies the request", a.Rule)
	}
	return "no policy is in force"
}
