package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/policy"
)

// accept runs records, as if they had come over the wire, through the filter.
func accept(t *testing.T, q question, rcode int, records ...string) (*Answer, error) {
	t.Helper()
	m := new(wire.Msg).SetQuestion(wire.Fqdn(q.name.String()), q.qtype)
	m.Response, m.Rcode, m.Answer = true, rcode, parseRecords(records...)
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var reply wire.Msg
	if err := reply.Unpack(packed); err != nil {
		t.Fatal(err)
	}
	return filter{builtinNever(t)}.accept(q, &reply, time.Now())
}

// text shows records without their time to live and class.
func text(records []wire.RR) string {
	var lines []string
	for _, rr := range records {
		fields := strings.Fields(rr.String())
		lines = append(lines, strings.Join(slices.Delete(fields, 1, 3), " "))
	}
	return strings.Join(lines, "; ")
}

func TestAnswersFollowAliases(t *testing.T) {
	var long []string
	for i := range maxAliases {
		long = append(long, fmt.Sprintf("a%d.example. 60 IN CNAME a%d.example.", i, i+1))
	}
	for _, test := range []struct {
		name    string
		q       question
		rcode   int
		records []string
		want    string
		err     error
	}{{
		name:    "in any order and case",
		q:       question{parseName("www.example.com"), wire.TypeA},
		records: []string{"CDN.example.net. 60 IN A 1.1.1.1", "www.EXAMPLE.com. 60 IN CNAME cdn.example.net."},
		want:    "www.EXAMPLE.com. CNAME cdn.example.net.; CDN.example.net. A 1.1.1.1",
	}, {
		name:    "only what was asked for",
		q:       question{parseName("example.com"), wire.TypeA},
		records: []string{"example.com. 60 IN A 1.1.1.1", "other.com. 60 IN A 8.8.8.8", "example.com. 60 IN TXT x", "example.com. 60 CH A 9.9.9.9"},
		want:    "example.com. A 1.1.1.1",
	}, {
		name:    "asked for the alias itself",
		q:       question{parseName("www.example.com"), wire.TypeCNAME},
		records: []string{"www.example.com. 60 IN CNAME example.com.", "example.com. 60 IN A 1.1.1.1"},
		want:    "www.example.com. CNAME example.com.",
	}, {
		name:    "that lead nowhere",
		q:       question{parseName("www.example.com"), wire.TypeA},
		rcode:   wire.RcodeNameError,
		records: []string{"www.example.com. 60 IN CNAME gone.example.com."},
		want:    "www.example.com. CNAME gone.example.com.",
	}, {
		name:    "in a circle",
		q:       question{parseName("a.example"), wire.TypeA},
		records: []string{"a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME a.example."},
		err:     errAliases,
	}, {
		name:    "too many",
		q:       question{parseName("a0.example"), wire.TypeA},
		records: append(long, fmt.Sprintf("a%d.example. 60 IN A 1.1.1.1", maxAliases)),
		err:     errAliases,
	}, {
		name:    "two for one name",
		q:       question{parseName("a.example"), wire.TypeA},
		records: []string{"a.example. 60 IN CNAME b.example.", "a.example. 60 IN CNAME c.example.", "b.example. 60 IN A 1.1.1.1"},
		err:     errAmbiguous,
	}, {
		name:    "records of a name that does not exist",
		q:       question{parseName("a.example"), wire.TypeA},
		rcode:   wire.RcodeNameError,
		records: []string{"a.example. 60 IN A 1.1.1.1"},
		err:     errContradiction,
	}} {
		t.Run(test.name, func(t *testing.T) {
			got, err := accept(t, test.q, test.rcode, test.records...)
			if !errors.Is(err, test.err) {
				t.Fatalf("got error %v, want %v", err, test.err)
			}
			if err == nil && text(got.Records) != test.want {
				t.Errorf("got  %s\nwant %s", text(got.Records), test.want)
			}
		})
	}
}

func TestAttack15ForbiddenAddressesAreTakenOut(t *testing.T) {
	for _, test := range []struct{ record, forbidden string }{
		{"A 10.0.0.1", "10.0.0.1"},
		{"A 127.0.0.1", "127.0.0.1"},
		{"A 100.100.100.200", "100.100.100.200"},
		{"A 169.254.169.254", "169.254.169.254"},
		{"A 198.19.0.5", "198.19.0.5"},
		{"A 224.0.0.1", "224.0.0.1"},
		{"AAAA ::1", "::1"},
		{"AAAA fe80::1", "fe80::1"},
		{"AAAA fd00:ec2::254", "fd00:ec2::254"},
		{"AAAA ::ffff:93.184.216.34", "::ffff:93.184.216.34"},
		{"AAAA 64:ff9b::a00:1", "64:ff9b::a00:1"},
		{"AAAA 2002:a00:1::", "2002:a00:1::"},
		// Attack 16.
		{"A 0.0.0.0", "0.0.0.0"},
		{"AAAA ::", "::"},
	} {
		qtype, allowed := uint16(wire.TypeA), "1.1.1.1"
		if strings.HasPrefix(test.record, "AAAA") {
			qtype, allowed = wire.TypeAAAA, "2606:4700:4700::1111"
		}
		name := question{parseName("evil.example"), qtype}
		got, err := accept(t, name, wire.RcodeSuccess, "evil.example. 60 IN "+test.record)
		if err != nil || len(got.Records) != 0 || got.Forbidden == nil || got.Forbidden.Addr != netip.MustParseAddr(test.forbidden) {
			t.Errorf("%s: got %+v, %v", test.record, got, err)
		}
		got, err = accept(t, name, wire.RcodeSuccess, "evil.example. 60 IN "+test.record, fmt.Sprintf("evil.example. 60 IN %s %s", wire.Type(qtype), allowed))
		if err != nil || len(got.addrs()) != 1 || got.addrs()[0].String() != allowed || got.Forbidden == nil {
			t.Errorf("%s beside an allowed one: got %+v, %v", test.record, got, err)
		}
	}
}

func TestAttack11EncryptedClientHelloIsStripped(t *testing.T) {
	for _, test := range []struct{ name, record, want string }{
		{"ech", `HTTPS 1 . alpn="h2,h3" ech="AEX+DQBB"`, `HTTPS 1 . alpn="h2,h3"`},
		{"ech in SVCB", `SVCB 1 svc.example. ech="AEX+DQBB" port="8443"`, `SVCB 1 svc.example. port="8443"`},
		{"mandatory ech", `HTTPS 1 . mandatory="ech" ech="AEX+DQBB"`, ""},
		{"other mandatory", `HTTPS 1 . mandatory="alpn" alpn="h2" ech="AEX+DQBB"`, `HTTPS 1 . mandatory="alpn" alpn="h2"`},
		{"hints", `HTTPS 1 . ipv4hint="10.0.0.1,1.1.1.1" ipv6hint="fd00::1,2606:4700:4700::1111"`, `HTTPS 1 . ipv4hint="1.1.1.1" ipv6hint="2606:4700:4700::1111"`},
		{"only forbidden hints", `HTTPS 1 . alpn="h2" ipv4hint="10.0.0.1" ipv6hint="::1"`, `HTTPS 1 . alpn="h2"`},
		{"mandatory forbidden hints", `HTTPS 1 . mandatory="ipv4hint" ipv4hint="10.0.0.1"`, ""},
		{"alias", `HTTPS 0 pool.example.`, `HTTPS 0 pool.example.`},
		{"unknown keys", `HTTPS 1 . key65333="ex1"`, `HTTPS 1 . key65333="ex1"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			qtype := uint16(wire.TypeHTTPS)
			if strings.HasPrefix(test.record, "SVCB") {
				qtype = wire.TypeSVCB
			}
			got, err := accept(t, question{parseName("example.com"), qtype}, wire.RcodeSuccess, "example.com. 60 IN "+test.record)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimPrefix(text(got.Records), "example.com. "); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestParseReverse(t *testing.T) {
	for _, test := range []struct {
		name, addr string
		isReverse  bool
	}{
		{"8.8.8.8.in-addr.arpa", "8.8.8.8", true},
		{"1.0.0.10.in-addr.arpa", "10.0.0.1", true},
		{"in-addr.arpa", "", true},
		{"10.in-addr.arpa", "", true},
		{"x.1.0.0.10.in-addr.arpa", "", true},
		{"256.0.0.10.in-addr.arpa", "", true},
		{"ip6.arpa", "", true},
		{"8.e.f.ip6.arpa", "", true},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa", "::1", true},
		{"10.00.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa", "", true},
		{"example.com", "", false},
		{"notin-addr.arpa", "", false},
		{"in-addr.arpa.example.com", "", false},
	} {
		addr, isReverse := parseReverse(test.name)
		want, _ := netip.ParseAddr(test.addr)
		if addr != want || isReverse != test.isReverse {
			t.Errorf("%s: got %v, %v", test.name, addr, isReverse)
		}
	}
}

// The node's name servers know the operator's private names.
func TestNamesOfPrivateAddressesAreNotAskedFor(t *testing.T) {
	u := &upstreams{answer: func(_, _ string, q *wire.Msg) *wire.Msg {
		return reply(q, q.Question[0].Name+" 60 IN PTR host.example.")
	}}
	r := u.newResolver(t, serverA)
	for _, name := range []string{"1.0.0.10.in-addr.arpa", "10.in-addr.arpa", "254.169.254.169.in-addr.arpa", "ip6.arpa"} {
		if got := resolve(t, r, name, wire.TypePTR); got.Rcode != wire.RcodeNameError || len(got.Records) != 0 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if asked := u.queries(); len(asked) != 0 {
		t.Errorf("the server was asked %q", asked)
	}
	if got := resolve(t, r, "8.8.8.8.in-addr.arpa", wire.TypePTR); len(got.Records) != 1 {
		t.Errorf("a public address: got %+v", got)
	}
}

// FuzzAnswer feeds the filter with replies of a hostile server.
func FuzzAnswer(f *testing.F) {
	seed := func(qtype uint16, records ...string) {
		m := new(wire.Msg).SetQuestion("example.com.", qtype)
		m.Response, m.Compress, m.Answer = true, true, parseRecords(records...)
		m.Ns = parseRecords("com. 900 IN SOA a. b. 1 2 3 4 300")
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed, qtype)
	}
	seed(wire.TypeA, "example.com. 60 IN CNAME x.example.net.", "x.example.net. 60 IN A 10.0.0.1", "x.example.net. 60 IN A 1.1.1.1")
	seed(wire.TypeAAAA, "example.com. 60 IN AAAA ::ffff:1.2.3.4", "example.com. 60 IN AAAA 2606::1")
	seed(wire.TypeHTTPS, `example.com. 60 IN HTTPS 1 . mandatory="alpn" alpn="h2" ech="AEX+DQBB" ipv4hint="10.0.0.1" ipv6hint="::1"`)
	seed(wire.TypeTXT, `example.com. 60 IN TXT "a" "b"`)
	never, err := policy.NewNever(nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packet []byte, qtype uint16) {
		var reply wire.Msg
		if reply.Unpack(packet) != nil || reply.Rcode != wire.RcodeSuccess && reply.Rcode != wire.RcodeNameError {
			return
		}
		now := time.Now()
		answer, err := filter{never}.accept(question{parseName("example.com"), qtype}, &reply, now)
		if err != nil {
			return
		}
		checkAnswer(t, answer, qtype, never)
		if left := answer.validFor(now); left < 0 || left > maxTTL {
			t.Errorf("valid for %v", left)
		}
		answer.aged(answer.Records, now.Add(time.Hour))
	})
}

// checkAnswer holds what must be true of every answer that a sandbox sees.
func checkAnswer(t *testing.T, answer *Answer, qtype uint16, never *policy.Never) {
	t.Helper()
	owner := "example.com."
	for _, rr := range answer.Records {
		if !strings.EqualFold(rr.Header().Name, owner) {
			t.Errorf("%v is not about %s", rr, owner)
		}
		if rr.Header().Rrtype != qtype {
			alias, ok := rr.(*wire.CNAME)
			if !ok {
				t.Fatalf("%v was not asked for", rr)
			}
			owner = alias.Target
		}
		switch rr := rr.(type) {
		case *wire.A, *wire.AAAA:
			if addr := addressOf(rr); never.Contains(addr) {
				t.Errorf("%v is in the answer", addr)
			}
		case *wire.HTTPS:
			checkService(t, &rr.SVCB, never)
		case *wire.SVCB:
			checkService(t, rr, never)
		}
	}
}

func checkService(t *testing.T, rr *wire.SVCB, never *policy.Never) {
	t.Helper()
	for _, param := range rr.Value {
		if param.Key() == wire.SVCB_ECHCONFIG {
			t.Errorf("%v has ech", rr)
		}
		for _, hint := range strings.Split(param.String(), ",") {
			if param.Key() != wire.SVCB_IPV4HINT && param.Key() != wire.SVCB_IPV6HINT {
				continue
			}
			if addr, err := netip.ParseAddr(hint); err != nil || never.Contains(addr) {
				t.Errorf("%v hints at %s", rr, hint)
			}
		}
	}
}
