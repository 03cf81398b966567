package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/gaissmai/bart"
)

// DefaultMaxEntries bounds each list of a document unless Options say otherwise.
const DefaultMaxEntries = 10_000

// Options are what Parse needs to know besides the document.
type Options struct {
	// Never is the table of the node. Nil means the built-in one.
	Never *Never
	// Home are the public URLs of this server; nil for none.
	Home *Home
	// MaxEntries bounds each list; 0 means DefaultMaxEntries.
	MaxEntries int
	// Rules accepts rules about requests and upstream proxies. It is for callers
	// that enforce them: what is accepted and not enforced would be a promise
	// nobody keeps.
	Rules bool
}

// Names of the lists, as callers write them and as errors and reasons show them.
const (
	fieldAllow   = "allowOut"
	fieldDeny    = "denyOut"
	fieldRules   = "rules"
	fieldDefault = "default"

	fieldEgressProxy = "egressProxy"
)

// EntryError says which entry of a document is wrong. Its text begins as
// E2B's does.
type EntryError struct {
	Field string // allowOut, denyOut or default
	// Entry is what the caller wrote, shortened and quoted where it must be;
	// empty when the field as a whole is wrong.
	Entry  string
	Reason string
}

// Error implements error.
func (e *EntryError) Error() string {
	switch {
	case e.Entry == "":
		return e.Field + ": " + e.Reason
	case e.Reason == reasonDenyAll:
		return reasonDenyAll
	case e.Field == fieldDeny:
		return "invalid denied CIDR " + e.Entry + ": " + e.Reason
	default:
		return "invalid allowed address " + e.Entry + ": " + e.Reason
	}
}

// Parse validates a document and compiles it. The error, if any, is an
// *EntryError about the first entry of a list that is wrong, or else a
// *SettingError.
func Parse(doc Document, opts Options) (*Policy, error) {
	limit := opts.MaxEntries
	if limit == 0 {
		limit = DefaultMaxEntries
	}
	never := opts.Never
	if never == nil {
		var err error
		if never, err = NewNever(nil, nil); err != nil {
			return nil, err
		}
	}
	if doc.Default != Allow && doc.Default != Deny {
		return nil, &EntryError{Field: fieldDefault, Reason: fmt.Sprintf("unknown verdict %d", uint8(doc.Default))}
	}
	p := &Policy{never: never, allow: new(list), deny: new(list), names: new(names), home: opts.Home, verdict: doc.Default}
	if err := parseList(fieldAllow, doc.AllowOut, limit, p.addAllowed); err != nil {
		return nil, err
	}
	if err := parseList(fieldDeny, doc.DenyOut, limit, func(entry string) string {
		prefix, reason := parsePrefix(entry)
		if reason == "" {
			insert(p.deny, prefix, entry)
		}
		return reason
	}); err != nil {
		return nil, err
	}
	if err := p.compileRequests(doc, opts.Rules); err != nil {
		return nil, err
	}
	if err := p.checkDenyAll(doc.Rules.Hosts); err != nil {
		return nil, err
	}
	return p, nil
}

// parseList hands each entry to add, which returns why it is wrong or "".
func parseList(field string, entries []string, limit int, add func(entry string) (reason string)) error {
	if len(entries) > limit {
		return &EntryError{
			Field:  field,
			Reason: fmt.Sprintf("%d entries, at most %d are accepted", len(entries), limit),
		}
	}
	for _, entry := range entries {
		if reason := add(entry); reason != "" {
			return &EntryError{Field: field, Entry: printable(entry), Reason: reason}
		}
	}
	return nil
}

// addAllowed compiles one entry of allowOut.
func (p *Policy) addAllowed(entry string) (reason string) {
	prefix, reason := parsePrefix(entry)
	if reason == "" {
		insert(p.allow, prefix, entry)
		return ""
	}
	host, _, _ := strings.Cut(entry, "/")
	if reason != reasonSyntax || endsInNumber(host) {
		return reason
	}
	pattern, wrong := parsePattern(entry)
	if wrong != "" {
		return "not an IP address, CIDR or domain name: " + wrong
	}
	p.names.Insert(pattern)
	return ""
}

// checkDenyAll refuses names where all else stays open, as E2B does: they
// would look like a restriction and be none. Denying by default is as good as
// denying all traffic, and names with rules of their own are exempt.
func (p *Policy) checkDenyAll(rules []HostRule) error {
	if _, denied := p.deny.Get(all4); denied || p.verdict == Deny {
		return nil
	}
	ruled := map[pattern]bool{}
	for _, r := range rules {
		host, _ := parsePattern(r.Host) // has been parsed before
		ruled[host.plain()] = true
	}
	for _, pattern := range p.names.patterns {
		if !ruled[pattern.plain()] {
			return &EntryError{Field: fieldAllow, Entry: printable(pattern.entry), Reason: reasonDenyAll}
		}
	}
	return nil
}

// list is the compiled addresses of a list: from prefix to the entry as it was
// written. Of two entries that mean the same prefix the first is kept.
type list = bart.Table[string]

// insert adds an entry; what is written as all IPv4 means IPv6 as well.
func insert(l *list, prefix netip.Prefix, entry string) {
	add := func(prefix netip.Prefix) {
		if _, taken := l.Get(prefix); !taken {
			l.Insert(prefix, strings.Clone(entry))
		}
	}
	add(prefix)
	if prefix == all4 {
		add(all6)
	}
}

var (
	all4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	all6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

const (
	reasonEmpty  = "the entry is empty"
	reasonSyntax = "not an IP address or CIDR"
	reasonZone   = "an address with a zone is not routable"
	reasonBits   = "the prefix length is not valid"
	// reasonDenyAll is E2B's text, word for word: its users know it.
	reasonDenyAll = "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic."
)

// parsePrefix reads one address or prefix. Bits beyond the prefix length are
// accepted and dropped. The reason is empty when the entry is valid.
func parsePrefix(entry string) (prefix netip.Prefix, reason string) {
	host, bits, isPrefix := strings.Cut(entry, "/")
	addr, err := netip.ParseAddr(host)
	switch {
	case entry == "":
		return prefix, reasonEmpty
	case err != nil:
		return prefix, reasonSyntax
	case addr.Zone() != "":
		return prefix, reasonZone
	case addr.Is4In6():
		return prefix, "an IPv4-mapped address; write it as IPv4, " + addr.Unmap().String()
	}
	prefix = netip.PrefixFrom(addr, addr.BitLen())
	if isPrefix {
		if prefix, err = netip.ParsePrefix(host + "/" + bits); err != nil {
			return prefix, reasonBits
		}
		prefix = prefix.Masked()
	}
	if prefix.Addr().IsUnspecified() && prefix.Bits() != 0 {
		return prefix, "the unspecified address stands only for all traffic, as " + AllTraffic + " or ::/0"
	}
	return prefix, ""
}

// maxPrinted bounds how much of a wrong entry an error repeats, in bytes.
const maxPrinted = 100

func printable(entry string) string {
	if len(entry) > maxPrinted {
		entry = strings.ToValidUTF8(entry[:maxPrinted], "") + "..."
	}
	quoted := strconv.Quote(entry)
	if entry == "" || strings.Contains(entry, " ") || len(quoted) != len(entry)+2 {
		return quoted
	}
	return entry
}
