package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

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
