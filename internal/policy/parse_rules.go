package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Limits of rules: E2B's, and Cube's where E2B has none.
const (
	maxRuleHosts    = 10
	maxRuleHost     = 128 // bytes
	maxHeaders      = 20  // of one rule
	maxHeaderName   = 64  // bytes
	maxHeaderValue  = 2048
	maxHostSecrets  = 32 // distinct, for one host
	maxOrderedRules = 512
	maxRuleName     = 128
	maxInjected     = 64 << 10 // bytes, of a value in Cube's shape
	maxRulePath     = 4096
)

// SettingError says what is wrong with a setting that is no list of addresses
// and names. It never repeats a value that may be secret.
type SettingError struct {
	Field string // where it stands, as callers write it
	Text  string // a sentence
}

// Error implements error.
func (e *SettingError) Error() string { return e.Text }

func ruleError(format string, args ...any) *SettingError {
	return &SettingError{Field: fieldRules, Text: fmt.Sprintf(format, args...)}
}

// compileRequests reads what the document says about requests and about the way
// they go.
func (p *Policy) compileRequests(doc Document, accepted bool) (err error) {
	if p.rules, err = compileRules(doc.Rules); err != nil {
		return err
	}
	if doc.EgressProxy != nil {
		if p.upstream, err = doc.EgressProxy.compile(p.never); err != nil {
			return err
		}
	}
	p.strictDNS = doc.StrictDNS
	switch {
	case accepted:
		return nil
	case p.rules != nil:
		return ruleError("Network transform rules are not available on this server.")
	case p.upstream != nil:
		return &SettingError{Field: fieldEgressProxy, Text: "Egress proxy (network.egressProxy) is not available on this server."}
	}
	return nil
}

// compileRules reads rules of either shape. Without any it returns nil.
func compileRules(r Rules) (*ruleset, error) {
	switch {
	case len(r.Hosts) > 0 && len(r.Ordered) > 0:
		return nil, ruleError("Network rules are either an object or a list, not both.")
	case len(r.Hosts) > 0:
		return compileHosts(r.Hosts)
	case len(r.Ordered) > 0:
		return compileOrdered(r.Ordered)
	}
	return nil, nil
}

// compileHosts reads E2B's shape. The texts are E2B's.
func compileHosts(rules []HostRule) (*ruleset, error) {
	if len(rules) > maxRuleHosts {
		return nil, ruleError("Network rules can have at most %d domains.", maxRuleHosts)
	}
	set := new(ruleset)
	seen := map[pattern]bool{}
	for _, r := range rules {
		host, err := parseRuleHost(r.Host)
		if err != nil {
			return nil, err
		}
		if seen[host.plain()] {
			return nil, ruleError("Rule domain %q is given twice.", r.Host)
		}
		seen[host.plain()] = true
		where := fmt.Sprintf("Domain %q", r.Host)
		inject, err := compileHeaders(where, r.Headers, maxHeaderValue)
		if err != nil {
			return nil, err
		}
		if len(inject) == 0 && !r.StripCredentials && !r.Strict {
			continue // changes nothing, so nothing is opened for it
		}
		rule := &compiledRule{name: r.Host, allow: true, on: onHTTP | onHTTPS, inject: inject, strip: r.StripCredentials}
		set.add(host, &hosted{entry: r.Host, rules: []*compiledRule{rule}, decides: rule.on})
	}
	set.collectSecrets()
	return set, nil
}

// parseRuleHost reads a name or *.name.
func parseRuleHost(host string) (p pattern, err error) {
	switch {
	case host == "":
		return p, ruleError("Rule domain must not be empty.")
	case len(host) > maxRuleHost:
		return p, ruleError("Rule domain %q exceeds maximum length of %d characters.", host[:maxRuleHost], maxRuleHost)
	}
	p, reason := parsePattern(host)
	if reason != "" || host == "*" {
		return p, ruleError("Rule domain %q is not a valid domain name.", host)
	}
	return p, nil
}

// compileHeaders reads the headers of a rule. where begins the sentence about
// one that is wrong.
func compileHeaders(where string, headers []Header, maxValue int) ([]Injection, error) {
	if len(headers) > maxHeaders {
		return nil, ruleError("%s can have at most %d headers per rule.", where, maxHeaders)
	}
	var all []Injection
	seen, secrets := map[string]bool{}, map[string]bool{}
	for _, h := range headers {
		if err := checkHeaderName(where, h.Name); err != nil {
			return nil, err
		}
		name := textproto.CanonicalMIMEHeaderKey(h.Name)
		if seen[name] {
			return nil, ruleError("%s sets header %s twice.", where, name)
		}
		seen[name] = true
		injection := Injection{Header: name}
		if h.Value.Known() {
			if len(h.Value.Reveal()) > maxValue {
				return nil, ruleError("%s: the value of header %s exceeds maximum length of %d characters.", where, name, maxValue)
			}
			var err error
			if injection.Value, err = ParseTemplate(h.Value); errors.Is(err, errPlaceholder) {
				return nil, ruleError("Network transform header contains a malformed E2B placeholder.")
			} else if err != nil {
				return nil, ruleError("%s: the value of header %s %v.", where, name, err)
			}
		}
		for secret := range injection.Value.Secrets() {
			secrets[secret] = true
		}
		all = append(all, injection)
	}
	if len(secrets) > maxHostSecrets {
		return nil, ruleError("%s can refer to at most %d secrets.", where, maxHostSecrets)
	}
	return all, nil
}

func checkHeaderName(where, name string) error {
	switch {
	case name == "":
		return ruleError("%s has a header without a name.", where)
	case len(name) > maxHeaderName:
		return ruleError("%s: header name %q exceeds maximum length of %d characters.", where, name[:maxHeaderName], maxHeaderName)
	case !httpguts.ValidHeaderFieldName(name):
		return ruleError("%s: %q is not a valid header name.", where, name)
	}
	switch strings.ToLower(name) {
	case "host", "content-length", "transfer-encoding", "trailer", "te", "connection", "keep-alive",
		"proxy-connection", "proxy-authenticate", "proxy-authorization", "upgrade", "http2-settings", "expect":
		return ruleError("%s: header %s cannot be set: it says how the request is transported.", where, textproto.CanonicalMIMEHeaderKey(name))
	}
	return nil
}

// compileOrdered reads Cube's shape.
func compileOrdered(rules []OrderedRule) (*ruleset, error) {
	if len(rules) > maxOrderedRules {
		return nil, ruleError("rules has %d rules, at most %d are accepted.", len(rules), maxOrderedRules)
	}
	var all []target
	seen := map[string]bool{}
	for i, r := range rules {
		if r.Name == "" || len(r.Name) > maxRuleName {
			return nil, ruleError("rules[%d].name must have 1 to %d characters.", i, maxRuleName)
		}
		if seen[r.Name] {
			return nil, ruleError("rules[%d].name %q is taken by another rule.", i, r.Name)
		}
		seen[r.Name] = true
		t, err := compileOne(fmt.Sprintf("rules[%d]", i), r)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return arrange(all), nil
}

// target is a rule and what it is about: hosts, an address, or neither.
type target struct {
	host *pattern
	addr netip.Addr
	rule *compiledRule
}

// about reports whether the rule is tried for what another one is about.
func (t target) about(other target) bool {
	switch {
	case t.host == nil && !t.addr.IsValid():
		return true
	case t.host == nil || other.host == nil:
		return t.addr == other.addr && t.host == nil && other.host == nil
	}
	return t.host.covers(*other.host)
}

// arrange collects for everything that rules are about the rules to try.
func arrange(all []target) *ruleset {
	set := &ruleset{addrs: map[netip.Addr]*hosted{}}
	for _, t := range all {
		switch {
		case t.host != nil:
			if _, done := set.hosts.Get(*t.host); !done {
				set.add(*t.host, gather(all, t, t.host.entry))
			}
		case t.addr.IsValid() && set.addrs[t.addr] == nil:
			set.addrs[t.addr] = gather(all, t, t.addr.String())
		}
	}
	set.collectSecrets()
	return set
}

// gather collects the rules to try for what one of them is about.
func gather(all []target, t target, entry string) *hosted {
	h := &hosted{entry: entry}
	for _, candidate := range all {
		if !candidate.about(t) {
			continue
		}
		h.rules = append(h.rules, candidate.rule)
		if candidate.host == nil && !candidate.addr.IsValid() {
			continue
		}
		h.decides |= candidate.rule.on
		if candidate.rule.allow {
			h.opens |= candidate.rule.on
		}
	}
	return h
}

// compileOne reads one rule of Cube's shape.
func compileOne(where string, r OrderedRule) (target, error) {
	rule := &compiledRule{name: r.Name, allow: r.Allow, strip: r.StripCredentials}
	t := target{rule: rule}
	var err error
	if rule.on, err = parseScheme(where, r.Match); err != nil {
		return t, err
	}
	if err := t.parseHosts(where, r.Match); err != nil {
		return t, err
	}
	for _, m := range r.Match.Methods {
		if !httpguts.ValidHeaderFieldName(m) { // methods are tokens as well
			return t, ruleError("%s.match.method: %s is not a method.", where, printable(m))
		}
	}
	rule.methods = slices.Clone(r.Match.Methods)
	if err := rule.parsePath(where, r.Match.Path); err != nil {
		return t, err
	}
	if rule.audit, err = parseAudit(where, r.Audit); err != nil {
		return t, err
	}
	if rule.inject, err = compileHeaders(where+".action.inject", r.Inject, maxInjected); err != nil {
		return t, err
	}
	if t.addr.IsValid() && len(rule.inject) > 0 && rule.allow {
		return t, ruleError("%s.action.inject: %v is an address: credentials are sent to servers that are known by name only.", where, t.addr)
	}
	return t, nil
}

func parseScheme(where string, m Match) (ports, error) {
	on := onHTTP | onHTTPS
	standard := 0
	switch m.Scheme {
	case "":
		if m.Port != 0 {
			return 0, ruleError("%s.match.port needs match.scheme.", where)
		}
	case schemeHTTP:
		on, standard = onHTTP, PortHTTP
	case schemeHTTPS:
		on, standard = onHTTPS, PortHTTPS
	default:
		return 0, ruleError("%s.match.scheme: %s is neither http nor https.", where, printable(m.Scheme))
	}
	if m.Port != 0 && m.Port != standard {
		return 0, ruleError("%s.match.port: rules about %s work on port %d only, not on %d.", where, m.Scheme, standard, m.Port)
	}
	if m.SNI != "" {
		on &= onHTTPS // nothing else has one
	}
	return on, nil
}

// parseHosts finds what the rule is about. Where both names are given they must
// agree: a request's host is always the one that its connection is for.
func (t *target) parseHosts(where string, m Match) error {
	if addr, err := netip.ParseAddr(m.Host); err == nil {
		switch {
		case addr.Zone() != "" || addr.Is4In6():
			return ruleError("%s.match.host: %s is not an address that can be reached.", where, printable(m.Host))
		case m.SNI != "" || m.Scheme != schemeHTTP:
			return ruleError("%s.match.host: %s is an address, for which rules work with scheme http only.", where, m.Host)
		}
		t.addr = addr
		return nil
	}
	var host, sni *pattern
	for _, field := range []struct {
		name, value string
		into        **pattern
	}{{"host", m.Host, &host}, {"sni", m.SNI, &sni}} {
		if field.value == "" {
			continue
		}
		p, reason := parsePattern(withoutPort(field.value))
		if reason != "" || p.name == "" {
			return ruleError("%s.match.%s: %s is neither a domain name nor *.name.", where, field.name, printable(field.value))
		}
		*field.into = &p
	}
	switch {
	case host == nil || sni != nil && host.covers(*sni):
		t.host = sni
	case sni == nil || sni.covers(*host):
		t.host = host
	default:
		return ruleError("%s.match: no request has both host %s and sni %s.", where, m.Host, m.SNI)
	}
	return nil
}

// withoutPort drops a port, which Cube ignores in hosts.
func withoutPort(host string) string {
	name, port, found := strings.Cut(host, ":")
	if _, err := strconv.ParseUint(port, 10, 16); found && err == nil {
		return name
	}
	return host
}

func (c *compiledRule) parsePath(where, text string) error {
	if text == "" {
		return nil
	}
	plain, prefix := strings.CutSuffix(text, "*")
	if plain == "" {
		return nil
	}
	clean, valid := cleanPath(strings.ReplaceAll(plain, "%", "%25"))
	if len(text) > maxRulePath || !valid || clean != plain || strings.Contains(plain, "*") {
		return ruleError("%s.match.path: %s is not an absolute, normalised path, with or without a final *.", where, printable(text))
	}
	c.path, c.prefix = plain, prefix
	return nil
}

func parseAudit(where, level string) (Audit, error) {
	switch level {
	case "", "metadata":
		return AuditMetadata, nil
	case "full":
		return AuditFull, nil
	case "none":
		return AuditNone, nil
	}
	return 0, ruleError("%s.action.audit: %s is none of full, metadata, none.", where, printable(level))
}
