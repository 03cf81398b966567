package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// TestAttacksOnNames: attacks 1 to 13, by which a sandbox claims to speak with
// a name that is allowed.
func TestAttacksOnNames(t *testing.T) {
	s := harness.Start(t, harness.Options{Lab: lab.Config{Records: echRecord}})
	box := withProber(t, s, only("example.com", "*.github.com", "hidden.test"))
	slow := mustDial(t, box, "tcp:"+attacker+":443") // attack 12 looks at it again
	began := time.Now()
	if _, err := io.WriteString(slow, clientHello("example.com")[:40]); err != nil {
		t.Fatal(err)
	}
	tryAll(t, s, box, []attack{
		{"TestAttack01SNISpoofing", attack01},
		{"TestAttack02HostSpoofing", attack02},
		{"TestAttack03DomainFronting", attack03},
		{"TestAttack04KeepAliveSecondHost", attack04},
		{"TestAttack05AbsoluteFormAndConnect", attack05},
		{"TestAttack06HTTP2OverPlainText", attack06},
		{"TestAttack07Smuggling", attack07},
		{"TestAttack08NameParsers", attack08},
		{"TestAttack09Suffixes", attack09},
		{"TestAttack10AddressNotations", attack10},
		{"TestAttack11NoUsableName", attack11},
		{"TestAttack12SplitClientHello", attack12},
		{"TestAttack13SharedHosting", attack13},
		{"TestAttack12ClientHelloThatNeverEnds", func(t *testing.T, _ *harness.Server, _ *harness.Box) {
			_ = slow.SetDeadline(began.Add(time.Minute))
			text, err := io.ReadAll(slow)
			if took := time.Since(began); string(text) != accessDenied || err != nil || took > 20*time.Second {
				t.Errorf("ended after %v with %q, %v", took, text, err)
			}
		}},
	})
}

// atExample reports whether an answer comes from the real example.com.
func atExample(body string) bool {
	return strings.HasPrefix(body, "this is example.com at 93.184.216.34") || strings.HasPrefix(body, "this is example.com at 2606:2800:220:1::34")
}

// An allowed name in the handshake, the attacker's address under it: the name
// is dialled.
func attack01(t *testing.T, s *harness.Server, box *harness.Box) {
	conn, err := handshake(t, s, mustDial(t, box, "tcp:"+attacker+":443"), &tls.Config{ServerName: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if _, body := request(t, conn, bufio.NewReader(conn), get("example.com", "/")); !atExample(body) {
		t.Errorf("answered by %q", body)
	}
}

func attack02(t *testing.T, s *harness.Server, box *harness.Box) {
	for _, addr := range []string{attacker + ":80", "[" + attacker6 + "]:80"} {
		conn := mustDial(t, box, "tcp:"+addr)
		if _, body := request(t, conn, bufio.NewReader(conn), get("example.com", "/")); !atExample(body) {
			t.Errorf("answered by %q", body)
		}
	}
}

// What is asked for inside of TLS is not seen. It goes to the server that is
// allowed and to no other.
func attack03(t *testing.T, s *harness.Server, box *harness.Box) {
	conn, err := handshake(t, s, mustDial(t, box, "tcp:"+attacker+":443"), &tls.Config{ServerName: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	_, body := request(t, conn, bufio.NewReader(conn), get("evil.example", "/"))
	if at, ok := strings.CutPrefix(body, "this is evil.example at "); !ok || !strings.HasPrefix(at, "93.184.216.34") && !strings.HasPrefix(at, "2606:2800:220:1::34") {
		t.Errorf("answered by %q", body)
	}
}

func attack04(t *testing.T, s *harness.Server, box *harness.Box) {
	conn := mustDial(t, box, "tcp:"+attacker+":80")
	in := bufio.NewReader(conn)
	for range 2 {
		if answer, body := request(t, conn, in, get("example.com", "/")); answer.StatusCode != 200 || !atExample(body) {
			t.Errorf("%d %s", answer.StatusCode, body)
		}
		answer, body := request(t, conn, in, get("evil.example", "/"))
		expectRefused(t, s, box, answer, body, "no entry of allowOut names evil.example")
	}
}

func attack05(t *testing.T, s *harness.Server, box *harness.Box) {
	for raw, want := range map[string]string{
		"GET http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n":             "400",
		"GET http://example.com/ HTTP/1.1\r\nHost: evil.example\r\n\r\n":             "400",
		"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n":            "403",
		"CONNECT evil.example:443 HTTP/1.1\r\nHost: example.com\r\n\r\n":             "405",
		"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n":          "405",
		"GET / HTTP/1.1\r\nHost: example.com@evil.example\r\n\r\n":                   "400",
		"GET / HTTP/1.1\r\nHost: example.com:8080\r\n\r\n":                           "421",
		"GET http://example.com@evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n": "400",
		"GET / HTTP/1.0\r\n\r\n": "403",
	} {
		if got := firstLine(t, box, "80", raw); !strings.HasPrefix(got, "HTTP/1.1 "+want) && !strings.HasPrefix(got, "HTTP/1.0 "+want) {
			t.Errorf("%q: %q, want %s", raw, got, want)
		}
	}
}

// HTTP/2 has a name in every stream. It is not spoken in the clear, neither
// from the start nor by an upgrade; what is in TLS is attack 3.
func attack06(t *testing.T, _ *harness.Server, box *harness.Box) {
	if got := firstLine(t, box, "80", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); !strings.Contains(got, "reset") && !strings.HasPrefix(got, "HTTP/1.1 4") {
		t.Errorf("prior knowledge: %q", got)
	}
	upgrade := "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
	if got := firstLine(t, box, "80", upgrade); got != "HTTP/1.1 200 OK" {
		t.Errorf("upgrade: %q", got)
	}
}

// Bytes with two meanings are refused, and what is hidden behind them reaches
// nobody.
func attack07(t *testing.T, s *harness.Server, box *harness.Box) {
	const host = "Host: example.com\r\n"
	const hidden = "GET /smuggled HTTP/1.1\r\nHost: example.com\r\n\r\n"
	for what, raw := range map[string]string{
		"CL.TE":                 "POST /a HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE.CL":                 "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden,
		"TE.TE":                 "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + hidden,
		"two lengths":           "POST /a HTTP/1.1\r\n" + host + "Content-Length: 0\r\nContent-Length: 9\r\n\r\n" + hidden,
		"two hosts":             "GET /a HTTP/1.1\r\n" + host + "Host: evil.example\r\n\r\n" + hidden,
		"two hosts, evil first": "GET /a HTTP/1.1\r\nHost: evil.example\r\n" + host + "\r\n" + hidden,
		"obs-fold":              "GET /a HTTP/1.1\r\n" + host + "X: 1\r\n 2\r\n\r\n" + hidden,
		"bare LF":               "GET /a HTTP/1.1\n" + host + "\n" + hidden,
		"bare CR":               "GET /a HTTP/1.1\r\n" + host + "X: 1\rHost: evil.example\r\n\r\n" + hidden,
		"NUL":                   "GET /a HTTP/1.1\r\n" + host + "X: 1\x002\r\n\r\n" + hidden,
		"blank before colon":    "POST /a HTTP/1.1\r\n" + host + "Content-Length : 0\r\n\r\n" + hidden,
		"negative chunk":        "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n-1\r\n" + hidden,
		"huge chunk":            "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + hidden,
		"trailer is a request":  "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + hidden,
		"expectation":           "POST /a HTTP/1.1\r\n" + host + "Expect: magic\r\nContent-Length: 3\r\n\r\nxyz" + hidden,
		"no version":            "GET /a\r\n" + hidden,
	} {
		if got := firstLine(t, box, "80", raw); !strings.HasPrefix(got, "HTTP/1.1 4") && !strings.HasPrefix(got, "HTTP/1.1 5") {
			t.Errorf("%s: %q, want it refused", what, got)
		}
	}
	// A body that looks like a request is a body.
	body := fmt.Sprintf("POST /echo HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s", host, len(hidden), hidden)
	if got := firstLine(t, box, "80", body); got != "HTTP/1.1 200 OK" {
		t.Errorf("a request in a body: %q", got)
	}
	if n := asked(s, "/smuggled"); n != 0 {
		t.Errorf("%d hidden requests got out", n)
	}
}

func attack08(t *testing.T, _ *harness.Server, box *harness.Box) {
	for _, name := range []string{
		"example.com\x00", "example.com\x00.evil.example", "evil.example\x00example.com", "example%2ecom", "example.com..", ".example.com", "sub..example.com",
		"exam ple.com", "*.github.com", "example\xff.com", "\u0435xample.com", "xn--example.com", "example.com/", "evil.example\\example.com",
		strings.Repeat("a", 64) + ".github.com", strings.Repeat("a.", 130) + "github.com", "example.com,evil.example", "example\x01.com",
	} {
		if got := firstLine(t, box, "80", get(name, "/")); !strings.HasPrefix(got, "HTTP/1.1 4") {
			t.Errorf("Host %q: %q", name, got)
		}
		expectAlert(t, box, "SNI "+name, clientHello(name))
	}
	// The same name however it is written.
	for _, name := range []string{"EXAMPLE.Com", "example.com.", "example\uff0ecom"} {
		if got := firstLine(t, box, "80", get(name, "/")); got != "HTTP/1.1 200 OK" {
			t.Errorf("Host %q: %q", name, got)
		}
	}
}

func attack09(t *testing.T, s *harness.Server, box *harness.Box) {
	for _, name := range []string{"github.com", "evilgithub.com", "api.github.com.evil.example", "github.com.evil.example", "api-github.com", "com", "sub.example.com", "example.com.evil.example"} {
		conn := mustDial(t, box, "tcp:"+attacker+":80")
		answer, body := request(t, conn, bufio.NewReader(conn), get(name, "/"))
		expectRefused(t, s, box, answer, body, "no entry of allowOut names "+name)
		expectAlert(t, box, name, clientHello(name))
		if got := addresses(lookup(t, box, "udp", "8.8.8.8:53", name, dns.TypeA)); len(got) != 1 || !synthetic.Contains(netip.MustParseAddr(got[0])) {
			t.Errorf("%s resolves to %v", name, got)
		}
		if n := queried(s, name); n != 0 && name != "com" && name != "github.com" {
			t.Errorf("%s was asked for", name)
		}
	}
}

func attack10(t *testing.T, s *harness.Server, box *harness.Box) {
	every := withProber(t, s, only("*"))
	for _, host := range []string{
		"757876304", "0x2d3c4650", "05517043120", "45.3950160", "055.074.0106.0120", "0x2d.0x3c.0x46.0x50", "45.60.70.0x50", "45.60.70", "45.60.70.80.", "256.1.1.1",
		"[::ffff:45.60.70.80]", "[fe80::1%lo]", "[::1%25lo]", attacker, "[" + attacker6 + "]", "127.0.0.1", "0", "169.254.169.254",
	} {
		if got := firstLine(t, every, "80", get(host, "/")); !strings.HasPrefix(got, "HTTP/1.1 40") {
			t.Errorf("Host %s: %q", host, got)
		}
		expectAlert(t, every, host, clientHello(strings.Trim(host, "[]")))
	}
	for entry, want := range map[string]int{"0x2d3c4650": 400, "45.3950160": 400, "055.074.0106.0120": 400, "45.60.70.80%eth0": 400, "::ffff:45.60.70.80": 400, "256.1.1.1": 400} {
		if a := s.Request(t, "PUT", "/sandboxes/"+box.ID+"/network", `{"denyOut":["0.0.0.0/0"],"allowOut":["example.com","`+entry+`"]}`); a.Status != want {
			t.Errorf("allowOut %s: %d %s", entry, a.Status, a.Body)
		}
	}
}

// echRecord is a name whose server offers to hide names.
const echRecord = `
hidden.test. 60 IN A     93.184.216.34
hidden.test. 60 IN HTTPS 1 . alpn="h2,h3" ipv4hint="93.184.216.34,10.0.0.1" ech="AEX+DQBBpQAgACB/RU5hAC5mXe3uOZtNY58Bc8UU1cd4QBxQzqirMlWZeQAEAAEAAQASY2xvdWRmbGFyZS1lY2guY29tAAA="
`

// Without a usable name the address decides, and no entry has it. The keys that
// would hide the name are not handed out.
func attack11(t *testing.T, s *harness.Server, box *harness.Box) {
	_, err := handshake(t, s, mustDial(t, box, "tcp:"+attacker+":443"), &tls.Config{InsecureSkipVerify: true})
	if err == nil || err.Error() != "remote error: tls: access denied" {
		t.Errorf("no SNI: %v", err)
	}
	for _, name := range []string{attacker, attacker6, "cloudflare-ech.com"} {
		expectAlert(t, box, name, clientHello(name))
	}
	reply := lookup(t, box, "udp", "8.8.8.8:53", "hidden.test", dns.TypeHTTPS)
	if len(reply.Answer) != 1 || !strings.HasSuffix(reply.Answer[0].String(), `1 . alpn="h2,h3" ipv4hint="93.184.216.34"`) {
		t.Errorf("the HTTPS record: %v", reply.Answer)
	}
}

// A wildcard over a place where everybody may put something is accepted, with a
// warning.
func attack13(t *testing.T, s *harness.Server, _ *harness.Box) {
	box := s.Create(t, only("*.github.io", "*.s3.amazonaws.com", "*.github.com"))
	state, err := s.Client().Network(t.Context(), box.ID)
	if err != nil {
		t.Fatal(err)
	}
	var warned []string
	for _, w := range state.Warnings {
		warned = append(warned, w.Entry)
	}
	if want := []string{"*.github.io", "*.s3.amazonaws.com"}; !slices.Equal(warned, want) {
		t.Errorf("warned about %v, want %v", warned, want)
	}
}

// A ClientHello in pieces, however small, is put together.
func attack12(t *testing.T, s *harness.Server, box *harness.Box) {
	evil, good := clientHello("evil.example"), clientHello("example.com")
	slowly := func(hello string) *inside {
		conn := mustDial(t, box, "tcp:"+attacker+":443")
		for i := range len(hello) {
			if _, err := io.WriteString(conn, hello[i:i+1]); err != nil {
				t.Fatal(err)
			}
		}
		return conn
	}
	records := func(hello string) (split string) {
		for _, c := range []byte(hello[5:]) {
			split += string([]byte{22, 3, 1, 0, 1, c})
		}
		return split
	}
	if text, err := io.ReadAll(slowly(evil)); string(text) != accessDenied {
		t.Errorf("evil, byte by byte: %q, %v", text, err)
	}
	expectAlert(t, box, "evil, in small records", records(evil))
	// The real server has no use for our made-up ClientHello, and says so itself.
	for what, conn := range map[string]*inside{"byte by byte": slowly(good), "in small records": mustDial(t, box, "tcp:"+attacker+":443")} {
		if what == "in small records" {
			if _, err := io.WriteString(conn, records(good)); err != nil {
				t.Fatal(err)
			}
		}
		if text, _ := io.ReadAll(conn); string(text) == accessDenied || len(text) == 0 {
			t.Errorf("example.com, %s: %q, want the server's own answer", what, text)
		}
	}
	// 64 KiB are too much.
	record := append([]byte{22, 3, 1, 0x40, 0, 1, 1, 0, 0}, make([]byte, 1<<14-4)...)
	oversized := string(record)
	for range 4 {
		oversized += string(record[:5]) + strings.Repeat("\x00", 1<<14)
	}
	conn := mustDial(t, box, "tcp:"+attacker+":443")
	_, _ = io.WriteString(conn, oversized) // it may be refused in the middle
	if text, err := io.ReadAll(conn); err == nil && string(text) != accessDenied {
		t.Errorf("oversized: %q", text)
	}
}
