package policy

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
	"go4.org/netipx"
)

// Range is a part of the address space that is never reachable, and why.
type Range struct {
	Prefix netip.Prefix
	// Why completes the sentence "never reachable: ...".
	Why string
}

// Never is the table of addresses that no sandbox reaches, whatever its
// policy says. It is the one such table: kernel rules, dialler, resolver and
// validation all ask this value. It is immutable; a nil *Never contains
// everything.
type Never struct {
	set     *netipx.IPSet // what is never reachable, exemptions taken out
	lookup  bart.Lite     // the same set, for fast questions
	reasons bart.Table[Range]
}

// NewNever builds the table from the built-in ranges.
//
// Ranges in own (the node's addresses, the network of the sandboxes) are added
// and hold in any case, as do those that moat uses itself. Ranges in exempt, which only the operator of the
// machine can give, are taken out of the built-in ones. What no router can
// forward (loopback, multicast, link-local IPv6 and the like) cannot be
// exempted: it would be a promise that nobody keeps.
func NewNever(own []Range, exempt []netip.Prefix) (*Never, error) {
	var set netipx.IPSetBuilder
	n := &Never{}
	for _, r := range builtin() {
		set.AddPrefix(r.Prefix)
		n.reasons.Insert(r.Prefix, r.Range)
	}
	for _, p := range exempt {
		if err := checkExempt(p); err != nil {
			return nil, err
		}
		set.RemovePrefix(p)
	}
	for _, r := range append(reserved(), own...) {
		if !r.Prefix.IsValid() || r.Prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("never-reachable range %v: not a prefix", r.Prefix)
		}
		r.Prefix = r.Prefix.Masked()
		set.AddPrefix(r.Prefix)
		n.reasons.Insert(r.Prefix, r)
	}
	var err error
	if n.set, err = set.IPSet(); err != nil {
		return nil, fmt.Errorf("build the never-reachable table: %w", err)
	}
	for _, p := range n.set.Prefixes() {
		n.lookup.Insert(p)
	}
	return n, nil
}

func checkExempt(p netip.Prefix) error {
	if !p.IsValid() {
		return errors.New("exempt range: not a prefix")
	}
	for _, r := range builtin() {
		if r.fixed && r.Prefix.Overlaps(p) {
			return fmt.Errorf("exempt range %v: %v (%s) cannot be exempted", p, r.Prefix, r.Why)
		}
	}
	return nil
}

// Contains reports whether an address is never reachable. An invalid address
// and one with a zone never are.
func (n *Never) Contains(a netip.Addr) bool {
	return n == nil || !a.IsValid() || a.Zone() != "" || n.lookup.Contains(a)
}

// Find returns the most specific range that makes an address unreachable.
func (n *Never) Find(a netip.Addr) (Range, bool) {
	if !n.Contains(a) {
		return Range{}, false
	}
	switch {
	case n == nil:
		return Range{Why: "there is no table of reachable addresses"}, true
	case a.Zone() != "":
		return Range{Why: reasonZone}, true
	}
	r, _ := n.reasons.Lookup(a) // there is none for an invalid address
	return r, true
}

// covers reports whether all of a prefix is never reachable, and why its first
// address is.
func (n *Never) covers(p netip.Prefix) (Range, bool) {
	if n == nil || !n.set.ContainsPrefix(p) {
		return Range{}, false
	}
	return n.Find(p.Addr())
}

// Ranges returns the table as sorted ranges that neither overlap nor touch.
func (n *Never) Ranges() (v4, v6 []netipx.IPRange) {
	if n == nil {
		return everything4(), everything6()
	}
	return split(n.set)
}

// Synthetic returns the range of the addresses that stand for names a policy
// does not allow. It is part of the table: no route leads there, and what a
// sandbox sends there is refused, with the name in the reason where the proxy
// can tell it.
func Synthetic() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, 0, 0}), 17)
}

// Equal reports whether both tables hold the same addresses.
func (n *Never) Equal(o *Never) bool {
	if n == nil || o == nil {
		return n == o
	}
	return n.set.Equal(o.set)
}

// reserved lists what moat uses itself: Synthetic, and the addresses at which
// the proxy and the resolver answer.
func reserved() []Range {
	const why = "reserved for moat itself"
	return []Range{{netip.MustParsePrefix("198.19.0.0/16"), why}, {netip.MustParsePrefix("fd6d:6f61:7400::/48"), why}}
}

// builtinRange is a Range of the built-in table. A fixed one cannot be
// exempted.
type builtinRange struct {
	Range
	fixed bool
}

// builtin lists what is not the public internet: the special-purpose
// registries of IANA (RFC 6890 and successors) and addresses of cloud
// infrastructure. Of IPv6 everything outside 2000::/3 is in it; the more
// specific entries are there to give the reason.
func builtin() []builtinRange {
	const fixed = true
	return []builtinRange{
		entry("0.0.0.0/8", "the unspecified network", fixed),
		entry("10.0.0.0/8", "private network", false),
		entry("100.64.0.0/10", "carrier-grade NAT network", false),
		entry("127.0.0.0/8", "loopback", fixed),
		entry("168.63.129.16/32", "cloud host service", false),
		entry("169.254.0.0/16", "link-local network and cloud metadata", false),
		entry("172.16.0.0/12", "private network", false),
		entry("192.0.0.0/24", "protocol assignments and cloud metadata", false),
		entry("192.0.2.0/24", "documentation network", false),
		entry("192.88.99.0/24", "6to4 relays", false),
		entry("192.168.0.0/16", "private network", false),
		entry("198.18.0.0/15", "benchmarking network", false),
		entry("198.51.100.0/24", "documentation network", false),
		entry("203.0.113.0/24", "documentation network", false),
		entry("224.0.0.0/4", "multicast", fixed),
		entry("240.0.0.0/4", "reserved network", fixed),
		entry("255.255.255.255/32", "broadcast", fixed),

		entry("::/3", "not a public IPv6 network", false),
		entry("4000::/2", "not a public IPv6 network", false),
		entry("8000::/1", "not a public IPv6 network", false),
		entry("::/96", "IPv4-compatible address", fixed),
		entry("::/128", "the unspecified address", fixed),
		entry("::1/128", "loopback", fixed),
		entry("::ffff:0:0/96", "IPv4-mapped address", fixed),
		entry("::ffff:0:0:0/96", "IPv4-translated address", false),
		entry("64:ff9b::/96", "NAT64 network", false),
		entry("64:ff9b:1::/48", "NAT64 network", false),
		entry("100::/64", "discard network", false),
		entry("2001::/23", "protocol assignments", false),
		entry("2001::/32", "Teredo tunnel", false),
		entry("2001:db8::/32", "documentation network", false),
		entry("2002::/16", "6to4 tunnel", false),
		entry("3fff::/20", "documentation network", false),
		entry("5f00::/16", "segment routing", false),
		entry("fc00::/7", "private network", false),
		entry("fd00:ec2::254/128", "cloud metadata", false),
		entry("fd20:ce::254/128", "cloud metadata", false),
		entry("fe80::/10", "link-local network", fixed),
		entry("fec0::/10", "site-local network", false),
		entry("ff00::/8", "multicast", fixed),
	}
}

func entry(prefix, why string, fixed bool) builtinRange {
	return builtinRange{Range{netip.MustParsePrefix(prefix), why}, fixed}
}
