package dns

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

const (
	// maxAliases is how many CNAME records one answer may lead through.
	maxAliases = 16
	// Nothing is remembered for longer than this, whatever its owner says.
	maxTTL         = 24 * time.Hour
	maxNegativeTTL = time.Hour
	// unsaidTTL is for answers without records that say nothing of how long they
	// hold. RFC 2308 would not have them cached, lest servers that ask each other
	// keep one alive; nobody whom we ask asks us. Without it every question of a
	// sandbox for such a name would leave the node.
	unsaidTTL = 5 * time.Second
)

var (
	errAliases       = errors.New("the answer leads through too many aliases")
	errAmbiguous     = errors.New("the answer has two aliases for one name")
	errContradiction = errors.New("the answer has records of a name that it says does not exist")
)

// Answer is what name servers said about a question, without what sandboxes
// must not see. It is shared and not to be changed.
type Answer struct {
	// Rcode is NOERROR or NXDOMAIN.
	Rcode int
	// Records are the aliases that lead from the name, in order, and the
	// records they lead to. They may be empty.
	Records []wire.RR
	// Authority is the SOA record that says for how long an answer without
	// records holds, if there is one.
	Authority []wire.RR
	// Forbidden is about one of the addresses that were taken out; nil if none
	// were.
	Forbidden *egress.ForbiddenError

	received time.Time
	ttl      time.Duration
}

// validFor returns how long the answer may still be used. It is 0 for what
// may be used only once.
func (a *Answer) validFor(now time.Time) time.Duration {
	return max(0, a.ttl-now.Sub(a.received))
}

// aged returns a copy of the records of a section with the time to live that
// they have left.
func (a *Answer) aged(section []wire.RR, now time.Time) []wire.RR {
	age := uint32(max(0, now.Sub(a.received)) / time.Second)
	copies := make([]wire.RR, len(section))
	for i, rr := range section {
		copies[i] = wire.Copy(rr)
		h := copies[i].Header()
		h.Ttl -= min(h.Ttl, age)
	}
	return copies
}

// addrs returns the addresses among the records.
func (a *Answer) addrs() (addrs []netip.Addr) {
	for _, rr := range a.Records {
		if addr := addressOf(rr); addr.IsValid() {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// size returns roughly how much memory the records take, in bytes.
func (a *Answer) size() (n int) {
	for _, rr := range a.Records {
		n += wire.Len(rr)
	}
	for _, rr := range a.Authority {
		n += wire.Len(rr)
	}
	return 2 * n
}

// addressOf returns the address in an A or AAAA record; the zero Addr for all
// others and for malformed ones.
func addressOf(rr wire.RR) netip.Addr {
	switch rr := rr.(type) {
	case *wire.A:
		return addressIn(rr.A, true)
	case *wire.AAAA:
		return addressIn(rr.AAAA, false)
	}
	return netip.Addr{}
}

// addressIn converts an address as records hold it. An IPv4-mapped address in
// a place for IPv6 stays one, so that it is judged as such.
func addressIn(ip net.IP, four bool) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	if four {
		return addr.Unmap()
	}
	return addr
}

// filter decides what of a reply sandboxes get to see.
type filter struct{ never *policy.Never }

// accept takes from a reply what answers the question. Whatever else a server
// added is left out.
func (f filter) accept(q question, reply *wire.Msg, now time.Time) (*Answer, error) {
	chain, final, end, err := follow(q, reply.Answer)
	switch {
	case err != nil:
		return nil, err
	case len(final) > 0 && reply.Rcode != wire.RcodeSuccess:
		return nil, errContradiction
	}
	a := &Answer{Rcode: reply.Rcode, Records: chain, received: now, ttl: lifetime(maxTTL, chain, final)}
	for _, rr := range final {
		if f.admit(rr, a) {
			a.Records = append(a.Records, rr)
		}
	}
	if len(final) > 0 {
		return a, nil
	}
	soa, negative := findSOA(reply.Ns, end)
	a.ttl = min(a.ttl, negative)
	if soa != nil {
		a.Authority = []wire.RR{soa}
	}
	return a, nil
}

// follow walks from the name through aliases to records of the type asked for.
// end is the name where the walk ended, whether or not it has any.
func follow(q question, records []wire.RR) (chain, final []wire.RR, end string, err error) {
	end = wire.Fqdn(q.name.String())
	for range maxAliases {
		var alias *wire.CNAME
		for _, rr := range records {
			h := rr.Header()
			if h.Class != wire.ClassINET || !strings.EqualFold(h.Name, end) {
				continue
			}
			if h.Rrtype == q.qtype {
				final = append(final, rr)
				continue
			}
			next, ok := rr.(*wire.CNAME)
			if !ok || next.Target == "" {
				continue
			}
			if alias != nil && !strings.EqualFold(alias.Target, next.Target) {
				return nil, nil, "", errAmbiguous
			}
			alias = next
		}
		if len(final) > 0 || alias == nil {
			return chain, final, end, nil
		}
		chain = append(chain, alias)
		end = alias.Target
	}
	return nil, nil, "", errAliases
}

// lifetime returns the shortest time to live of all records, at most limit.
func lifetime(limit time.Duration, sections ...[]wire.RR) time.Duration {
	for _, records := range sections {
		for _, rr := range records {
			limit = min(limit, ttl(rr.Header().Ttl))
		}
	}
	return limit
}

// ttl converts a time to live. One with the highest bit set counts as 0
// (RFC 2181, section 8).
func ttl(seconds uint32) time.Duration {
	if seconds > 1<<31-1 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// findSOA returns the record that says for how long it holds that a name has
// no records (RFC 2308), and that time.
func findSOA(authority []wire.RR, name string) (wire.RR, time.Duration) {
	for _, rr := range authority {
		soa, ok := rr.(*wire.SOA)
		if ok && soa.Ns != "" && soa.Mbox != "" && wire.IsSubDomain(soa.Hdr.Name, name) {
			return soa, min(maxNegativeTTL, ttl(soa.Hdr.Ttl), ttl(soa.Minttl))
		}
	}
	return nil, unsaidTTL
}

// admit reports whether a record may be seen. It takes out of a record what
// may not, and notes forbidden addresses in a.
func (f filter) admit(rr wire.RR, a *Answer) bool {
	switch rr := rr.(type) {
	case *wire.A:
		return f.reachable(addressIn(rr.A, true), a)
	case *wire.AAAA:
		return f.reachable(addressIn(rr.AAAA, false), a)
	case *wire.HTTPS:
		return f.admitService(&rr.SVCB, a)
	case *wire.SVCB:
		return f.admitService(rr, a)
	}
	return true
}

func (f filter) reachable(addr netip.Addr, a *Answer) bool {
	var forbidden *egress.ForbiddenError
	if errors.As(egress.Judge(f.never, addr), &forbidden) {
		a.Forbidden = forbidden
		return false
	}
	return true
}

// admitService takes encrypted-ClientHello keys, which would hide the name
// from the proxy, and forbidden addresses out of a service record. A record
// that cannot do without them is not admitted.
func (f filter) admitService(rr *wire.SVCB, a *Answer) bool {
	var mandatory []wire.SVCBKey
	removed := make(map[wire.SVCBKey]bool)
	kept := make([]wire.SVCBKeyValue, 0, len(rr.Value))
	for _, param := range rr.Value {
		switch param := param.(type) {
		case *wire.SVCBMandatory:
			mandatory = param.Code
		case *wire.SVCBIPv4Hint:
			param.Hint = f.reachableHints(param.Hint, true, a)
			removed[param.Key()] = len(param.Hint) == 0
		case *wire.SVCBIPv6Hint:
			param.Hint = f.reachableHints(param.Hint, false, a)
			removed[param.Key()] = len(param.Hint) == 0
		case *wire.SVCBECHConfig:
			removed[param.Key()] = true
		}
		if !removed[param.Key()] {
			kept = append(kept, param)
		}
	}
	rr.Value = kept
	for _, key := range mandatory {
		if removed[key] {
			return false
		}
	}
	return rr.Target != ""
}

func (f filter) reachableHints(hints []net.IP, four bool, a *Answer) (kept []net.IP) {
	for _, hint := range hints {
		if f.reachable(addressIn(hint, four), a) {
			kept = append(kept, hint)
		}
	}
	return kept
}
