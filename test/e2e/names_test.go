package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/test/harness"
)

// Addresses of the laboratory's internet.
const (
	exampleAddr = "93.184.216.34:443"
	googleAddr  = "142.250.74.46:443"
	evilAddr    = "45.60.70.80:443"
)

// synthetic is the range of addresses that stand for forbidden names.
var synthetic = netip.MustParsePrefix("198.19.0.0/17")

// trusted is the laboratory's authority.
func trusted(t *testing.T, s *harness.Server) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(s.Lab.CA()) {
		t.Fatal("the lab has no CA")
	}
	return pool
}

// only is a document that allows nothing but these entries.
func only(allow ...string) api.NewSandbox { return api.NewSandbox{Network: network(allow, everything)} }

// visits are URLs that curl asks for in a sandbox, and what comes of it: part
// of the body, or of curl's complaint.
type visits map[string]string

// What curl says of a refused TLS connection, whatever it is linked with.
const alert = "exit 35"

func (v visits) check(t *testing.T, box *harness.Box) {
	t.Helper()
	for url, want := range v {
		got := box.Run(t, "curl -sS -m 10 '"+url+"'")
		text := fmt.Sprintf("%s%s exit %d", got.Stdout, got.Stderr, got.Code)
		if !strings.Contains(text, want) {
			t.Errorf("%s: %q, want %q", url, text, want)
		}
	}
}

// TestNames asks for names as programs do, with policies as E2B's pages have
// them.
func TestNames(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	off := false
	for _, c := range []struct {
		name   string
		spec   api.NewSandbox
		visits visits
		// leaked must not have left the node, neither as a question nor as a
		// packet to its address.
		leaked map[string]string
	}{
		{"one name", only("google.com"), visits{
			"http://google.com/":       "this is google.com at",
			"https://google.com/":      "this is google.com at",
			"https://GOOGLE.com./":     "this is GOOGLE.com. at",
			"http://www.google.com/":   `"rule":"denyOut"`,
			"https://www.google.com/":  alert,
			"https://one.one.one.one/": alert,
			"http://140.82.112.3/":     `"rule":"denyOut"`,
		}, map[string]string{"one.one.one.one": "1.1.1.1", "www.google.com": ""}},
		{"names below", only("*.github.com"), visits{
			"https://api.github.com/":   "this is api.github.com",
			"https://a.b.c.github.com/": "this is a.b.c.github.com",
			"http://raw.github.com/":    "this is raw.github.com",
			"https://github.com/":       alert,
			"http://github.com/":        "no entry of allowOut names github.com",
			"https://evilgithub.com/":   alert,
		}, map[string]string{"evilgithub.com": "45.60.70.80"}},
		{"every name", only("*"), visits{
			"https://example.com/":      "this is example.com at",
			"https://sub.evil.example/": "this is sub.evil.example",
			"http://93.184.216.35/":     `"rule":"denyOut"`,
			"https://93.184.216.35/":    alert,
			"http://example.com:7/":     "exit 7",
		}, map[string]string{"93.184.216.35.": "93.184.216.35"}},
		{"names and addresses", only("api.example.com", "*.github.com", "8.8.8.8"), visits{
			"https://api.example.com/": "this is api.example.com at",
			"https://x.github.com/":    "this is x.github.com",
			"http://8.8.8.8/":          "this is 8.8.8.8 at 8.8.8.8",
			"https://example.com/":     "exit 35",
			"http://1.1.1.1/":          `"rule":"denyOut"`,
		}, nil},
		{"no internet access but a name", api.NewSandbox{AllowInternetAccess: &off, Network: network([]string{"example.com"}, nil)}, visits{
			"https://example.com/": "this is example.com",
			"https://google.com/":  alert,
			"http://google.com/":   `"rule":"default"`,
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			box := s.Create(t, c.spec)
			questions, packets := make(map[string]int), make(map[string]int)
			for name, addr := range c.leaked {
				questions[name], packets[addr] = queried(s, name), reached(s, addr)
			}
			c.visits.check(t, box)
			for name, addr := range c.leaked {
				if queried(s, name) != questions[name] {
					t.Errorf("a question for %s left the node", name)
				}
				if addr != "" && reached(s, addr) != packets[addr] {
					t.Errorf("packets to %s (%s) left the node", addr, name)
				}
			}
			if err := s.Client().Kill(t.Context(), box.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNamesOpenNoPorts: names count on 80 and 443 alone, and for TCP alone.
func TestNamesOpenNoPorts(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("*", "1.1.1.1"))
	expect(t, s, box, []string{"1.1.1.1"}, []string{"93.184.216.34", "8.8.8.8", "2606:2800:220:1::34", "2001:4860:4860::8888"})
	found := probe(t, box, "udp:93.184.216.34:443", "tcp:93.184.216.34:22", "tcp:93.184.216.34:8443", "udp:8.8.4.4:853", "tcp:8.8.4.4:853")
	for target, o := range found {
		if o.Result == "answered" {
			t.Errorf("%s answered", target)
		}
	}
}

// TestDNS asks resolvers from a sandbox whose policy has names: whoever is
// asked, ours answers, and what is forbidden stays on the node.
func TestDNS(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com", "*.github.com"))
	if got := box.MustRun(t, "cat /etc/resolv.conf"); got != "nameserver 8.8.8.8" {
		t.Errorf("resolv.conf says %q", got)
	}
	for _, server := range []string{"8.8.8.8:53", "1.1.1.1:53", "45.60.70.80:53", "[2606:4700:4700::1111]:53"} {
		for _, proto := range []string{"udp", "tcp"} {
			if got := addresses(lookup(t, box, proto, server, "example.com", dns.TypeA)); !slices.Equal(got, []string{"93.184.216.34"}) {
				t.Errorf("%s %s: example.com is %v", proto, server, got)
			}
			secret := fmt.Sprintf("secret-%s-%d.evil.example", proto, len(server))
			reply := lookup(t, box, proto, server, secret, dns.TypeA)
			got := addresses(reply)
			if len(got) != 1 || !synthetic.Contains(netip.MustParseAddr(got[0])) {
				t.Errorf("%s %s: %s is %v, want an address of %v", proto, server, secret, got, synthetic)
			}
			if text := reply.String(); !strings.Contains(text, "no entry of allowOut names "+secret) {
				t.Errorf("%s %s: the reply does not say why: %s", proto, server, text)
			}
		}
	}
	if got := addresses(lookup(t, box, "udp", "8.8.8.8:53", "example.com", dns.TypeAAAA)); !slices.Equal(got, []string{"2606:2800:220:1::34"}) {
		t.Errorf("AAAA example.com: %v", got)
	}
	if reply := lookup(t, box, "udp", "8.8.8.8:53", "evil.example", dns.TypeAAAA); reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != 0 {
		t.Errorf("AAAA evil.example: %v", reply)
	}
	if n := queried(s, "evil.example"); n != 0 {
		t.Errorf("%d questions for evil.example left the node", n)
	}
	for _, q := range s.Lab.Queries() {
		if !strings.HasSuffix(q.Name, "example.com.") || q.To.String() != "8.8.8.8:53" {
			t.Errorf("left the node: %+v", q)
		}
	}
	awaitRecord(t, s, box, "an allowed question", func(r record) bool {
		return r.Protocol == "dns" && r.Name == "example.com" && r.Verdict == "allow" && r.Method == "AAAA" && r.Entry == "example.com"
	})
	awaitRecord(t, s, box, "a refused question", func(r record) bool {
		return r.Protocol == "dns" && strings.HasPrefix(r.Name, "secret-udp") && r.Verdict == "deny" && r.Generation == 1
	})
	if got := box.MustRun(t, "getent ahostsv4 api.github.com | head -1"); !strings.HasPrefix(got, "140.82.112.3") {
		t.Errorf("getent says %q", got)
	}
	// What the forbidden name seems to be is refused, with the name in the reason.
	visits{"http://evil.example/": "no entry of allowOut names evil.example"}.check(t, box)
}

// TestRefusals: what is refused is told why, as far as its protocol can.
func TestRefusals(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com"))
	conn := mustDial(t, box, "tcp:45.60.70.80:80")
	in := bufio.NewReader(conn)
	answer, body := request(t, conn, in, get("evil.example", "/a?token=1"))
	expectRefused(t, s, box, answer, body, "no entry of allowOut names evil.example")
	if answer.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the refusal is %q", answer.Header.Get("Content-Type"))
	}
	// The connection is good for the next request.
	if answer, body := request(t, conn, in, get("example.com", "/")); answer.StatusCode != 200 || !strings.HasPrefix(body, "this is example.com at ") {
		t.Errorf("after the refusal: %d %s", answer.StatusCode, body)
	}
	_, err := handshake(t, s, mustDial(t, box, "tcp:"+evilAddr), &tls.Config{ServerName: "evil.example"})
	if err == nil || err.Error() != "remote error: tls: access denied" {
		t.Errorf("TLS: %v, want the alert access_denied", err)
	}
	awaitRecord(t, s, box, "the refused TLS connection", func(r record) bool {
		return r.Protocol == "tls" && r.Name == "evil.example" && r.Verdict == "deny" && r.Address == "45.60.70.80" && r.Port == 443
	})
	if _, err := mustDial(t, box, "tcp:"+evilAddr).send(t, "SSH-2.0-x\r\n\r\n"); err == nil {
		t.Error("what is no TLS was not reset")
	}
	if n := reached(s, "45.60.70.80"); n != 0 {
		t.Errorf("%d packets got to evil.example", n)
	}
	awaitRecord(t, s, box, "the allowed request", func(r record) bool {
		return r.Protocol == "http" && r.Name == "example.com" && r.Verdict == "allow" && r.Method == "GET" && r.Path == "/" && r.Status == 200 && r.Address != ""
	})
}

// TestStrictDNS: names that may not be reached do not exist.
func TestStrictDNS(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	spec := only("example.com")
	spec.Network.DNS = api.DNSStrict
	box := s.Create(t, spec)
	visits{"https://example.com/": "this is example.com", "https://google.com/": "exit 6"}.check(t, box)
}
