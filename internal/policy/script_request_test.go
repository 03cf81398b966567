package policy_test

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// request reads what a document says about requests: "host HOST" with
// "Header=value", "strip" and "strict" after it; "rule NAME allow" or "deny"
// with conditions "host=", "sni=", "method=A,B", "path=", "scheme=", "port=",
// and "inject=Header=value", "strip" and "audit="; "egressProxy ADDRESS".
// A ~ in a value stands for a space.
func (s *script) request(fields []string) {
	rules := &s.doc.Rules
	switch fields[0] {
	case "egressProxy":
		s.doc.EgressProxy = &policy.EgressProxy{Address: fields[1]}
		if len(fields) > 2 {
			user, password, _ := strings.Cut(fields[2], ":")
			s.doc.EgressProxy.Username, s.doc.EgressProxy.Password = user, secret.New(password)
		}
	case "host":
		r := policy.HostRule{Host: s.unquote(fields[1])}
		for _, f := range fields[2:] {
			switch f {
			case "strip":
				r.StripCredentials = true
			case "strict":
				r.Strict = true
			default:
				r.Headers = append(r.Headers, header(f))
			}
		}
		rules.Hosts = append(rules.Hosts, r)
	case "rule":
		r := policy.OrderedRule{Name: s.unquote(fields[1]), Allow: fields[2] == "allow"}
		for _, f := range fields[3:] {
			s.part(&r, f)
		}
		rules.Ordered = append(rules.Ordered, r)
	}
}

func header(text string) policy.Header {
	name, value, _ := strings.Cut(text, "=")
	return policy.Header{Name: name, Value: secret.New(strings.ReplaceAll(value, "~", " "))}
}

func (s *script) part(r *policy.OrderedRule, text string) {
	key, value, _ := strings.Cut(text, "=")
	switch key {
	case "host":
		r.Match.Host = value
	case "sni":
		r.Match.SNI = value
	case "method":
		r.Match.Methods = strings.Split(value, ",")
	case "path":
		r.Match.Path = value
	case "scheme":
		r.Match.Scheme = value
	case "port":
		port, err := strconv.Atoi(value)
		if err != nil {
			s.fatalf("port %q", value)
		}
		r.Match.Port = port
	case "inject":
		r.Inject = append(r.Inject, header(value))
	case "strip":
		r.StripCredentials = true
	case "audit":
		r.Audit = value
	default:
		s.fatalf("cannot read %q", text)
	}
}

// team's secrets in all scripts.
type scriptSecrets struct{}

func (scriptSecrets) Secret(team, name string) (secret.String, bool) {
	if team != "acme" || name != "openai" {
		return secret.String{}, false
	}
	return secret.New("s3cr3t"), true
}

// ask asks about a request; "sni=NAME" overrules that the connection is for
// the host of the URL, and "at=ADDRESS:PORT" asks what is said of that address.
func (s *script) ask(method, address string, more []string) string {
	u, err := url.Parse(address)
	if err != nil {
		s.fatalf("%v", err)
	}
	r := policy.Request{Scheme: u.Scheme, Method: method, Path: u.EscapedPath(), Port: policy.PortHTTP}
	if u.RawPath == "" {
		_, r.Path, _ = strings.Cut(address, u.Host)
		r.Path, _, _ = strings.Cut(r.Path, "?")
	}
	if r.Addr, err = netip.ParseAddr(u.Hostname()); err != nil {
		r.Name = s.name(u.Hostname())
	}
	if u.Scheme == "https" {
		r.Port, r.SNI = policy.PortHTTPS, r.Name
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
		r.Port = uint16(port)
	}
	a := s.policy().Request(r)
	for _, f := range more {
		if to, ok := strings.CutPrefix(f, "at="); ok {
			a = s.policy().RequestAt(netip.MustParseAddrPort(to), &r)
			continue
		}
		r.SNI = s.name(strings.TrimPrefix(f, "sni="))
		a = s.policy().Request(r)
	}
	got := a.Verdict.String() + ": " + a.Reason()
	if a.Strip {
		got += "; strips credentials"
	}
	for _, i := range a.Inject {
		value, err := i.Value.Resolve("acme", scriptSecrets{})
		if err != nil {
			got += "; no " + i.Header + ": " + err.Error()
			continue
		}
		got += "; " + i.Header + ": " + value.Reveal()
	}
	return got
}
