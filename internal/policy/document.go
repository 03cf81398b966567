// Package policy decides what a sandbox may reach on the internet.
//
// It is pure: a network document goes in, an immutable compiled *Policy comes
// out, and Decide answers every question about a flow. The kernel rules, and
// everything else that enforces or explains, are derived from that one value,
// so they cannot disagree. Zero, nil and unparsable all mean deny.
//
// What the rules mean is written down as runnable examples in testdata/*.policy.
package policy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/moat-sandbox/moat/internal/secret"
)

// Document is what a caller wrote about the network of one sandbox.
//
// The engine has no default of its own: the zero Document denies everything.
// Who promises "open unless said otherwise" (E2B's API does) writes
// Default: Allow into the document.
type Document struct {
	// AllowOut lists what is reachable; it beats DenyOut. An entry is an address,
	// a prefix, a domain name, *.name for all names below that one at any depth
	// but not itself, or * for every name. Names count for TCP on ports 80 and
	// 443 only, and need that all else is denied: AllTraffic in DenyOut, or
	// Default: Deny.
	AllowOut []string `json:"allowOut,omitempty"`
	// DenyOut lists addresses and prefixes that are not reachable.
	DenyOut []string `json:"denyOut,omitempty"`
	// Rules say what becomes of requests. A name in AllowOut for which there is a
	// rule in E2B's shape needs no denial of all else: E2B's pages refer in
	// AllowOut to hosts that have rules, as a way to say that requests to them are
	// changed.
	Rules Rules `json:"rules,omitzero"`
	// EgressProxy is where all TCP flows that are allowed go through.
	EgressProxy *EgressProxy `json:"egressProxy,omitempty"`
	// StrictDNS makes names that may not be reached not exist. Otherwise they
	// resolve to addresses to which nothing leads.
	StrictDNS bool `json:"strictDNS,omitempty"`
	// Default is the verdict for an address that neither list names.
	Default Verdict `json:"default"`
}

// Secrets returns what of the document may be secret and is not part of its
// JSON: values of headers and the password of the upstream proxy, in the order
// in which WithSecrets takes them.
func (d Document) Secrets() []secret.String {
	var all []secret.String
	d.eachSecret(func(s *secret.String) { all = append(all, *s) })
	return all
}

// WithSecrets returns the document with the values that Secrets returned. It
// fails if they cannot be those of this document.
func (d Document) WithSecrets(values []secret.String) (Document, error) {
	d = d.clone()
	taken := 0
	d.eachSecret(func(s *secret.String) {
		if taken < len(values) {
			*s = values[taken]
		}
		taken++
	})
	if taken != len(values) {
		return Document{}, errors.New("network document: the secrets are those of another document")
	}
	return d, nil
}

// WithoutSecrets returns the document as it may be kept in the open.
func (d Document) WithoutSecrets() Document {
	d = d.clone()
	d.eachSecret(func(s *secret.String) { *s = secret.String{} })
	return d
}

func (d *Document) eachSecret(visit func(*secret.String)) {
	for i := range d.Rules.Hosts {
		for j := range d.Rules.Hosts[i].Headers {
			visit(&d.Rules.Hosts[i].Headers[j].Value)
		}
	}
	for i := range d.Rules.Ordered {
		for j := range d.Rules.Ordered[i].Inject {
			visit(&d.Rules.Ordered[i].Inject[j].Value)
		}
	}
	if d.EgressProxy != nil {
		visit(&d.EgressProxy.Password)
	}
}

// clone copies all that eachSecret can change.
func (d Document) clone() Document {
	d.Rules.Hosts = slices.Clone(d.Rules.Hosts)
	for i := range d.Rules.Hosts {
		d.Rules.Hosts[i].Headers = slices.Clone(d.Rules.Hosts[i].Headers)
	}
	d.Rules.Ordered = slices.Clone(d.Rules.Ordered)
	for i := range d.Rules.Ordered {
		d.Rules.Ordered[i].Inject = slices.Clone(d.Rules.Ordered[i].Inject)
	}
	if d.EgressProxy != nil {
		proxy := *d.EgressProxy
		d.EgressProxy = &proxy
	}
	return d
}

// AllTraffic is E2B's name for everything. It is written as an IPv4 prefix but
// means all addresses of both families, in either list: a sandbox that is
// denied all traffic must not get out over IPv6. The prefix ::/0 is taken
// literally and means IPv6 only.
const AllTraffic = "0.0.0.0/0"

// Verdict is the answer to whether a flow may pass. Its zero value is Deny.
type Verdict uint8

const (
	// Deny refuses the flow.
	Deny Verdict = iota
	// Allow lets the flow pass.
	Allow
)

// String returns "deny" or "allow"; an unknown value is "deny".
func (v Verdict) String() string {
	if v == Allow {
		return "allow"
	}
	return "deny"
}

// MarshalText writes the verdict as a word, so that stored documents can be read.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what MarshalText wrote and refuses every other word.
func (v *Verdict) UnmarshalText(text []byte) error {
	switch string(text) {
	case "allow":
		*v = Allow
	case "deny":
		*v = Deny
	default:
		*v = Deny
		return fmt.Errorf("verdict %q is neither allow nor deny", text)
	}
	return nil
}
