package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

const ruledAddress = "93.184.216.34"

// addressRule is about requests to an address.
func addressRule(name string, allow bool, methods ...string) policy.OrderedRule {
	return policy.OrderedRule{Name: name, Allow: allow, Match: policy.Match{Host: ruledAddress, Scheme: "http", Methods: methods}}
}

func ordered(rules ...policy.OrderedRule) policy.Rules { return policy.Rules{Ordered: rules} }

// toAddress makes a sandbox that connects to ruledAddress, and says what is sent
// there.
func toAddress(t *testing.T, doc policy.Document) (*box, *transcript) {
	t.Helper()
	w := newWorld(t, proxy.Limits{})
	w.original = netip.MustParseAddr(ruledAddress)
	server := new(transcript)
	w.serve(t, ruledAddress+":80", func(conn *net.TCPConn) {
		in := io.TeeReader(conn, server)
		one := make([]byte, 1<<16)
		if n, _ := in.Read(one); n > 0 {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	b := w.box(t, 1)
	b.publishDocument(t, doc)
	return b, server
}

func answered200(answer string) bool {
	return strings.HasPrefix(answer, "HTTP/1.1 200") || strings.HasPrefix(answer, "HTTP/1.0 200")
}

// The requests that are sent to an address with a rule that allows GET, and
// which of them pass: the address decides, whatever Host says, and what is no
// request never passes.
var addressRequests = []struct {
	what, text string
	get        bool
}{
	{"GET", "GET / HTTP/1.1\r\nHost: 93.184.216.34\r\n\r\n", true},
	{"GET for a name", "GET / HTTP/1.1\r\nHost: x.example\r\n\r\n", true},
	{"GET without a host", "GET / HTTP/1.0\r\n\r\n", true},
	{"POST", "POST / HTTP/1.1\r\nHost: 93.184.216.34\r\nContent-Length: 0\r\n\r\n", false},
	{"POST for a name", "POST / HTTP/1.1\r\nHost: x.example\r\nContent-Length: 0\r\n\r\n", false},
	{"POST for another address", "POST / HTTP/1.1\r\nHost: 9.9.9.9\r\nContent-Length: 0\r\n\r\n", false},
	{"POST for the address in another notation", "POST / HTTP/1.1\r\nHost: [::ffff:93.184.216.34]\r\nContent-Length: 0\r\n\r\n", false},
	{"POST without a host", "POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n", false},
	{"empty line first", "\r\nDELETE / HTTP/1.1\r\nHost: x.example\r\n\r\n", false},
	{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false},
	{"bytes", "\x00\x01\x02\x03 DELETE", false},
}

func TestAddressRuleIgnoresHost(t *testing.T) {
	for _, doc := range []policy.Document{
		{Rules: ordered(addressRule("read", true, "GET"))},
		{Rules: ordered(addressRule("read", true, "GET")), Default: policy.Allow},
		{Rules: ordered(addressRule("read", true, "GET")), AllowOut: []string{ruledAddress}},
		{Rules: ordered(addressRule("read", true, "GET"), addressRule("rest", false)), Default: policy.Allow},
	} {
		for _, r := range addressRequests {
			b, server := toAddress(t, doc)
			answer := b.exchange(t, r.text)
			if passed := answered200(answer); passed != r.get || r.get == (server.String() == "") {
				t.Errorf("%s under %+v: %q; the server was sent %q", r.what, doc, answer, server.String())
			}
			if r.get {
				if got := b.records(t, 1)[0]; got.Verdict != policy.Allow || got.Matched != "read" {
					t.Errorf("%s: record %+v", r.what, got)
				}
			} else if got := b.w.net.dialled(); len(got) != 0 {
				t.Errorf("%s: dialled %v", r.what, got)
			}
		}
	}
}

// A rule that denies an address, where addresses are open otherwise.
func TestAddressRuleDeniesWhateverHost(t *testing.T) {
	for _, doc := range []policy.Document{
		{Rules: ordered(addressRule("none", false)), Default: policy.Allow},
		{Rules: ordered(addressRule("none", false)), AllowOut: []string{ruledAddress}},
		{Rules: ordered(addressRule("none", false, "GET")), Default: policy.Allow},
	} {
		for _, r := range addressRequests {
			b, server := toAddress(t, doc)
			if answer := b.exchange(t, r.text); answered200(answer) || server.String() != "" || len(b.w.net.dialled()) > 0 {
				t.Errorf("%s under %+v: %q; the server was sent %q", r.what, doc, answer, server.String())
			}
		}
	}
}

// A rule that allows every request allows no bytes that are none.
func TestAddressRuleForAllMethodsLetsNoBytesThrough(t *testing.T) {
	b, server := toAddress(t, policy.Document{Rules: ordered(addressRule("no-delete", false, "DELETE"), addressRule("rest", true))})
	conn := b.http(t)
	io.WriteString(conn, "\r\nDELETE / HTTP/1.1\r\nHost: x.example\r\n\r\n")
	wantReset(t, conn)
	r := b.records(t, 1)[0]
	if server.String() != "" || r.Verdict != policy.Deny || r.Rule != "rules" || !strings.Contains(r.Reason, "rules decide about each request to "+ruledAddress) {
		t.Errorf("%q, record %+v", server.String(), r)
	}
}

// Where no rule is about the address, nothing changes.
func TestNoRuleAboutAddress(t *testing.T) {
	other := policy.OrderedRule{Name: "other", Match: policy.Match{Host: "9.9.9.8", Scheme: "http"}, Allow: true}
	for _, rules := range []policy.Rules{{}, ordered(other)} {
		for _, r := range addressRequests {
			b, server := toAddress(t, policy.Document{Rules: rules, Default: policy.Allow})
			answer := b.exchange(t, r.text)
			if strings.Contains(r.what, "notation") { // refused as malformed, or sent: as before
				continue
			}
			if !answered200(answer) || server.String() == "" {
				t.Errorf("%s: %q; the server was sent %q", r.what, answer, server.String())
			}
			b, _ = toAddress(t, policy.Document{Rules: rules})
			if answer := b.exchange(t, r.text); answered200(answer) {
				t.Errorf("%s passes though nothing allows it: %q", r.what, answer)
			}
		}
	}
}

// Headers are never put into a request to an address, even if a rule that is
// about no host in particular would.
func TestAddressRuleInjectsNothing(t *testing.T) {
	anywhere := policy.OrderedRule{Name: "anywhere", Allow: true, Inject: ruled("x", "X-Key", "v").Rules.Hosts[0].Headers}
	b, server := toAddress(t, policy.Document{Rules: ordered(addressRule("no-post", false, "POST"), anywhere), Default: policy.Allow})
	for _, host := range []string{"x.example", ruledAddress, "9.9.9.9"} {
		if answer := b.exchange(t, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 403") || server.String() != "" {
			t.Errorf("%s: %q; the server was sent %q", host, answer, server.String())
		}
	}
}

// An update that tightens the rules about an address cuts what goes there under
// the name of another host, and what cannot be judged.
func TestAddressRuleCutsOnUpdate(t *testing.T) {
	before := policy.Document{Rules: ordered(addressRule("all", true))}
	after := policy.Document{Rules: ordered(addressRule("read", true, "GET"))}
	for _, c := range []struct {
		text string
		from policy.Document
		cut  int
	}{
		{"POST / HTTP/1.1\r\nHost: x.example\r\nContent-Length: 0\r\n\r\n", before, 1},
		{"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n", before, 0},
		{"\x00 bytes\n", policy.Document{Default: policy.Allow}, 1},
	} {
		w := newWorld(t, proxy.Limits{})
		w.original = netip.MustParseAddr(ruledAddress)
		w.serve(t, ruledAddress+":80", func(conn *net.TCPConn) {
			bufio.NewReader(conn).ReadString('\n')
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
			io.Copy(io.Discard, conn)
		})
		b := w.box(t, 1)
		b.publishDocument(t, c.from)
		conn := b.http(t)
		io.WriteString(conn, c.text)
		if line, err := bufio.NewReader(conn).ReadString('f'); err != nil {
			t.Fatalf("%q: %q, %v", c.text, line, err)
		}
		if cut := b.change(t, after); cut != c.cut {
			t.Errorf("%q: %d flows cut, want %d", c.text, cut, c.cut)
		}
		if c.cut == 1 {
			wantReset(t, conn)
		}
	}
}

// A name that an update denies is not kept alive by an address whose rules do
// not allow the request.
func TestAddressRuleCountsForNamesThatLeadThere(t *testing.T) {
	for method, want := range map[string]int{http.MethodGet: 0, http.MethodPost: 1} {
		w := newWorld(t, proxy.Limits{})
		w.net.at = map[string]netip.Addr{"x.example": netip.MustParseAddr(ruledAddress)}
		w.serve(t, "x.example:80", func(conn *net.TCPConn) {
			bufio.NewReader(conn).ReadString('\n')
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
			io.Copy(io.Discard, conn)
		})
		b := w.box(t, 1, "x.example")
		conn := b.http(t)
		io.WriteString(conn, method+" / HTTP/1.1\r\nHost: x.example\r\nContent-Length: 0\r\n\r\n")
		if line, err := bufio.NewReader(conn).ReadString('f'); err != nil {
			t.Fatalf("%s: %q, %v", method, line, err)
		}
		if cut := b.change(t, policy.Document{Rules: ordered(addressRule("read", true, "GET"))}); cut != want {
			t.Errorf("%s: %d flows cut, want %d", method, cut, want)
		}
		if got := w.net.dialled(); !slices.Equal(got, []string{"x.example:80"}) {
			t.Errorf("%s: dialled %v", method, got)
		}
	}
}
