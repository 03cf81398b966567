package policy

import (
	"errors"
	"fmt"
	"net/textproto"
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
		set.changed = append(set.changed, host)
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
