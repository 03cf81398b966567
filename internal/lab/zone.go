package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// DNSServer is the address of one of the internet's name servers; it listens
// on UDP and TCP.
const DNSServer = "8.8.8.8:53"

// Domain is the name under which a server on the node is reachable: the name
// itself and everything below it resolve to the node's own address.
const Domain = "moat.test"

// dnsAddr is the host of DNSServer.
var dnsAddr = netip.MustParseAddr("8.8.8.8")

// resolverAddrs are the public resolvers. They answer alike.
func resolverAddrs() []netip.Addr {
	return []netip.Addr{
		dnsAddr,
		netip.MustParseAddr("8.8.4.4"),
		netip.MustParseAddr("1.1.1.1"),
		netip.MustParseAddr("1.0.0.1"),
		netip.MustParseAddr("2001:4860:4860::8888"),
		netip.MustParseAddr("2606:4700:4700::1111"),
	}
}

// publicAddrs are all the addresses that the internet owns by default.
func publicAddrs() []netip.Addr {
	return append(resolverAddrs(),
		netip.MustParseAddr("9.9.9.9"),
		netip.MustParseAddr("93.184.216.34"),
		netip.MustParseAddr("93.184.216.35"),
		netip.MustParseAddr("140.82.112.3"),
		netip.MustParseAddr("142.250.74.46"),
		netip.MustParseAddr("45.60.70.80"),
		netip.MustParseAddr("2606:2800:220:1::34"),
		netip.MustParseAddr("2606:2800:220:1::35"),
		netip.MustParseAddr("2607:f8b0:4004::64"),
		netip.MustParseAddr("2a02:6b8::80"),
	)
}

// defaultRecords are the names of the ordinary internet. evil.example belongs
// to an attacker, who points names wherever he likes.
const defaultRecords = `
example.com.                60 IN A    93.184.216.34
example.com.                60 IN AAAA 2606:2800:220:1::34
www.example.com.            60 IN CNAME example.com.
api.example.com.            60 IN A    93.184.216.35
api.example.com.            60 IN AAAA 2606:2800:220:1::35
google.com.                 60 IN A    142.250.74.46
google.com.                 60 IN AAAA 2607:f8b0:4004::64
*.google.com.               60 IN A    142.250.74.46
github.com.                 60 IN A    140.82.112.3
*.github.com.               60 IN A    140.82.112.3
one.one.one.one.            60 IN A    1.1.1.1
dns.google.                 60 IN A    8.8.8.8

moat.test.                  60 IN A    198.51.100.2
*.moat.test.                60 IN A    198.51.100.2

evil.example.               60 IN A    45.60.70.80
evil.example.               60 IN AAAA 2a02:6b8::80
*.evil.example.             60 IN A    45.60.70.80
evilgithub.com.             60 IN A    45.60.70.80
metadata.evil.example.      60 IN A    169.254.169.254
loopback.evil.example.      60 IN A    127.0.0.1
loopback.evil.example.      60 IN AAAA ::1
private.evil.example.       60 IN A    10.0.0.1
unspecified.evil.example.   60 IN A    0.0.0.0
unspecified.evil.example.   60 IN AAAA ::
mapped.evil.example.        60 IN AAAA ::ffff:127.0.0.1
node.evil.example.          60 IN A    198.51.100.2
rebind.evil.example.         0 IN A    45.60.70.80
rebind.evil.example.         0 IN A    127.0.0.1
`

// zone holds all names of the lab.
type zone struct {
	records map[string][]dns.RR // by lower-case owner name

	mu    sync.Mutex
	turns map[string]int // how often a name with TTL 0 was asked for
}

// parseZone reads records in master file form. A name in a later text replaces
// all records that an earlier text has for it.
func parseZone(texts ...string) (*zone, error) {
	z := &zone{records: make(map[string][]dns.RR), turns: make(map[string]int)}
	for _, text := range texts {
		fresh := make(map[string][]dns.RR)
		parser := dns.NewZoneParser(strings.NewReader(text), "", "records")
		for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
			name := strings.ToLower(rr.Header().Name)
			fresh[name] = append(fresh[name], rr)
		}
		if err := parser.Err(); err != nil {
			return nil, fmt.Errorf("parse the lab's names: %w", err)
		}
		for name, rrs := range fresh {
			z.records[name] = rrs
		}
	}
	return z, nil
}

// find returns the records of a name, by wildcard if there are none of its own.
func (z *zone) find(name string) ([]dns.RR, bool) {
	name = strings.ToLower(name)
	if rrs, ok := z.records[name]; ok {
		return rrs, true
	}
	for off, end := dns.NextLabel(name, 0); !end; off, end = dns.NextLabel(name, off) {
		if rrs, ok := z.records["*."+name[off:]]; ok {
			return rrs, true
		}
	}
	return nil, false
}

// answer returns the records for one question, following aliases inside the
// zone, and whether the name exists.
func (z *zone) answer(q dns.Question) (answers []dns.RR, exists bool) {
	name := q.Name
	const longestChain = 8
	for range longestChain {
		rrs, ok := z.find(name)
		if !ok {
			return answers, len(answers) > 0
		}
		exists = true
		var matching []dns.RR
		alias := ""
		for _, rr := range rrs {
			rr = dns.Copy(rr)
			rr.Header().Name = name
			if cname, ok := rr.(*dns.CNAME); ok && q.Qtype != dns.TypeCNAME {
				alias = cname.Target
				answers = append(answers, rr)
			} else if rr.Header().Rrtype == q.Qtype || q.Qtype == dns.TypeANY {
				matching = append(matching, rr)
			}
		}
		answers = append(answers, z.turn(name, matching)...)
		if alias == "" {
			return answers, true
		}
		name = alias
	}
	return answers, exists
}

// turn picks the next of the records with TTL 0; others are returned as they are.
func (z *zone) turn(name string, rrs []dns.RR) []dns.RR {
	if len(rrs) == 0 || rrs[0].Header().Ttl != 0 {
		return rrs
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	key := fmt.Sprintf("%s %d", strings.ToLower(name), rrs[0].Header().Rrtype)
	i := z.turns[key] % len(rrs)
	z.turns[key]++
	return rrs[i : i+1]
}
