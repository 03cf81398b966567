package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gaissmai/bart"
)

// DefaultMaxEntries bounds each list of a document unless Options say otherwise.
const DefaultMaxEntries = 10_000

// Options are what Parse needs to know besides the document.
type Options struct {
	// Never is the table of the node. Nil means the built-in one.
	Never *Never
	// MaxEntries bounds each list; 0 means DefaultMaxEntries.
	MaxEntries int
}

// Names of the lists, as callers write them and as errors and reasons show them.
const (
	fieldAllow   = "allowOut"
	fieldDeny    = "denyOut"
	fieldDefault = "default"
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
	case e.Field == fieldDeny:
		return "invalid denied CIDR " + e.Entry + ": " + e.Reason
	default:
		return "invalid allowed address " + e.Entry + ": " + e.Reason
	}
}

// Parse validates a document and compiles it. The error, if any, is an
// *EntryError about the first entry that is wrong.
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
	allow, err := parseList(fieldAllow, doc.AllowOut, limit)
	if err != nil {
		return nil, err
	}
	deny, err := parseList(fieldDeny, doc.DenyOut, limit)
	if err != nil {
		return nil, err
	}
	return &Policy{never: never, allow: allow, deny: deny, verdict: doc.Default}, nil
}

// list is one compiled list: from prefix to the entry as it was written. Of
// two entries that mean the same prefix the first is kept.
type list = bart.Table[string]

func parseList(field string, entries []string, limit int) (*list, error) {
	if len(entries) > limit {
		return nil, &EntryError{
			Field:  field,
			Reason: fmt.Sprintf("%d entries, at most %d are accepted", len(entries), limit),
		}
	}
	l := new(list)
	for _, entry := range entries {
		prefix, reason := parseEntry(field, entry)
		if reason != "" {
			return nil, &EntryError{Field: field, Entry: printable(entry), Reason: reason}
		}
		insert(l, prefix, entry)
		if prefix == all4 {
			insert(l, all6, entry)
		}
	}
	return l, nil
}

func insert(l *list, prefix netip.Prefix, entry string) {
	if _, taken := l.Get(prefix); !taken {
		l.Insert(prefix, strings.Clone(entry))
	}
}

var (
	all4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	all6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

const (
	reasonEmpty   = "the entry is empty"
	reasonSyntax  = "not an IP address or CIDR"
	reasonDomains = "domain filtering is not available yet"
	reasonZone    = "an address with a zone is not routable"
	reasonBits    = "the prefix length is not valid"
)

// parseEntry reads one address or prefix. Bits beyond the prefix length are
// accepted and dropped. The reason is empty when the entry is valid.
func parseEntry(field, entry string) (prefix netip.Prefix, reason string) {
	host, bits, isPrefix := strings.Cut(entry, "/")
	addr, err := netip.ParseAddr(host)
	switch {
	case entry == "":
		return prefix, reasonEmpty
	case err != nil && !isPrefix && field == fieldAllow && looksLikeName(entry):
		return prefix, reasonDomains
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

// looksLikeName tells a domain name or pattern from a mistyped address: what
// consists of digits and dots, or ends in a number of any notation, was meant
// to be an address.
func looksLikeName(s string) bool {
	if s == "*" {
		return true
	}
	for _, c := range []byte(strings.TrimPrefix(s, "*.")) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf
		if !letter && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	last := strings.TrimSuffix(s, ".")
	last = last[strings.LastIndexByte(last, '.')+1:]
	_, err := strconv.ParseUint(last, 0, 64)
	return last != "" && err != nil && strings.Trim(last, "0123456789") != ""
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
