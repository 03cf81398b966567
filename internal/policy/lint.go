package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Warning says about one entry of a document that it probably does not do
// what its author wants. Warnings refuse nothing.
type Warning struct {
	Field string // allowOut, denyOut or rules
	Entry string // as it was written
	Text  string // completes the sentence "ENTRY in FIELD ..."
}

// String returns the warning as a sentence.
func (w Warning) String() string { return w.Entry + " in " + w.Field + " " + w.Text }

// Warnings returns what is doubtful about the document: wildcards over domains
// in which anybody can get a name, and entries without effect. Addresses come
// before names, allowOut before denyOut before rules. An entry that means the
// same as an earlier one is not mentioned.
func (p *Policy) Warnings() []Warning {
	if p == nil {
		return nil
	}
	var found []Warning
	add := func(field, entry, text string) {
		if text != "" {
			found = append(found, Warning{field, entry, text})
		}
	}
	for prefix, entry := range entries(p.allow) {
		add(fieldAllow, entry, p.allowWithoutEffect(prefix))
	}
	for prefix, entry := range entries(p.deny) {
		add(fieldDeny, entry, p.denyWithoutEffect(prefix))
	}
	for _, pattern := range p.names.patterns {
		add(fieldAllow, pattern.entry, shared(pattern))
		add(fieldAllow, pattern.entry, p.nameWithoutEffect(pattern))
	}
	if p.rules != nil {
		for _, host := range p.rules.changed {
			add(fieldRules, host.entry, p.ruleWithoutEffect(host))
		}
	}
	return found
}

// entries yields the entries of a list once each, in the order of addresses.
func entries(l *list) func(yield func(netip.Prefix, string) bool) {
	return func(yield func(netip.Prefix, string) bool) {
		all, _ := l.Get(all4)
		for prefix, entry := range l.AllSorted() {
			if prefix == all6 && entry == all {
				continue // the other half of AllTraffic
			}
			if !yield(prefix, entry) {
				return
			}
		}
	}
}

func (p *Policy) allowWithoutEffect(prefix netip.Prefix) string {
	if text := p.anyWithoutEffect(p.allow, fieldAllow, prefix); text != "" {
		return text
	}
	if p.verdict == Allow && !p.deny.OverlapsPrefix(prefix) {
		return "has no effect: nothing denies it"
	}
	return ""
}

func (p *Policy) denyWithoutEffect(prefix netip.Prefix) string {
	if text := p.anyWithoutEffect(p.deny, fieldDeny, prefix); text != "" {
		return text
	}
	if entry, ok := p.allow.LookupPrefix(prefix); ok {
		return fmt.Sprintf("has no effect: %s beats it with %s", fieldAllow, entry)
	}
	return ""
}

// anyWithoutEffect finds what makes an entry of either list superfluous.
func (p *Policy) anyWithoutEffect(l *list, field string, prefix netip.Prefix) string {
	if r, never := p.never.covers(prefix); never {
		return fmt.Sprintf("has no effect: never reachable (%s)", r.Why)
	}
	for broader, entry := range l.Supernets(prefix) {
		if broader != prefix {
			return fmt.Sprintf("has no effect: %s in %s covers it", entry, field)
		}
	}
	return ""
}

// nameWithoutEffect finds what makes a name superfluous.
func (p *Policy) nameWithoutEffect(n pattern) string {
	if entry, ok := p.names.Broader(n); ok {
		return fmt.Sprintf("has no effect: %s in %s covers it", entry, fieldAllow)
	}
	if p.verdict == Allow && p.deny.Size() == 0 {
		return "has no effect: nothing is denied"
	}
	all, ok := p.allow.Get(all4)
	if _, also := p.allow.Get(all6); ok && also {
		return fmt.Sprintf("has no effect: %s in %s opens all addresses", all, fieldAllow)
	}
	return ""
}

// ruleWithoutEffect finds that no request to a host with a rule can be made.
func (p *Policy) ruleWithoutEffect(host pattern) string {
	if p.others().Verdict == Allow || p.allow.Size() > 0 {
		return ""
	}
	for _, n := range p.names.patterns {
		if n.covers(host) || host.covers(n) {
			return ""
		}
	}
	return "has no effect: a rule opens nothing, and " + fieldAllow + " does not name it"
}

// shared warns of wildcards over a domain in which strangers get names.
func shared(n pattern) string {
	const text = "covers names that anybody can get: "
	if !n.wild || n.name == "" { // a bare * says plainly what it does
		return ""
	}
	if !strings.Contains(n.name, ".") {
		return text + "it is a top-level domain"
	}
	below := "any." + n.name // for suffixes that are any name below another
	for _, domain := range []string{n.name, below} {
		suffix, registry := publicsuffix.PublicSuffix(domain)
		switch {
		case suffix != domain:
		case registry:
			return text + n.name + " is a domain registry"
		default:
			return text + n.name + " is shared hosting"
		}
	}
	if example, ok := aboveSharedHosting(n.name); ok {
		return text + example + " is shared hosting"
	}
	return ""
}

// aboveSharedHosting knows the domains that people write when they mean one
// customer's place in a cloud. The public-suffix list has only what is below.
func aboveSharedHosting(name string) (example string, ok bool) {
	switch name {
	case "amazonaws.com":
		return "s3.amazonaws.com", true
	case "windows.net", "core.windows.net":
		return "blob.core.windows.net", true
	}
	return "", false
}
