package proxy_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// handshake speaks TLS as a client that asks for a name.
func handshake(t testing.TB, conn net.Conn, name string) (*tls.Conn, error) {
	t.Helper()
	c := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	return c, c.HandshakeContext(t.Context())
}

// wantAlert expects the alert that says "access denied".
func wantAlert(t testing.TB, err error) {
	t.Helper()
	if err == nil || err.Error() != "remote error: tls: access denied" {
		t.Errorf("got %v, want the alert access_denied", err)
	}
}

func wantDials(t testing.TB, w *world, want ...string) {
	t.Helper()
	if got := w.net.dialled(); !slices.Equal(got, want) {
		t.Errorf("dialled %q, want %q", got, want)
	}
}

// Attack 01: the name is allowed, the address is the attacker's. The name is
// dialled, the address never.
func TestAttack01SNISpoofing(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	server := w.secure(t, "example.com", hello)
	w.serve(t, attacker+":443", func(conn *net.TCPConn) { t.Error("the attacker was reached") })
	b := w.box(t, 1, "example.com")
	conn, err := handshake(t, b.tls(t), "example.com")
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.ConnectionState().PeerCertificates[0]; !got.Equal(server.Certificate()) {
		t.Errorf("the certificate is for %v", got.DNSNames)
	}
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
	if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "hello from example.com") {
		t.Errorf("%q, %v", answer, err)
	}
	conn.Close()
	wantDials(t, w, "example.com:443")
	r := b.records(t, 1)[0]
	if r.Verdict != policy.Allow || r.Protocol != audit.TLS || r.Name != "example.com" || r.Rule != "allowOut" || r.Entry != "example.com" ||
		r.Dst.String() != server.Listener.Addr().String() || r.BytesUp < 300 || r.BytesDown < 1000 || r.Generation != 1 || r.Duration <= 0 || r.Time.IsZero() {
		t.Errorf("record %+v", r)
	}
}

// A name that is not allowed is refused with an alert that clients show.
func TestRefusedTLS(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	b := w.box(t, 1, "example.com")
	_, err := handshake(t, b.tls(t), "evil.example")
	wantAlert(t, err)
	wantDials(t, w)
	r := b.records(t, 1)[0]
	if r.Verdict != policy.Deny || r.Protocol != audit.TLS || r.Name != "evil.example" || r.Dst.String() != attacker+":443" ||
		!strings.Contains(r.Reason, "evil.example") || r.BytesUp != 0 || r.ID == 0 {
		t.Errorf("record %+v", r)
	}
}

// Attack 02: an allowed Host sent to the attacker's address.
func TestAttack02HostSpoofing(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	server := w.site(t, "example.com", hello)
	w.serve(t, attacker+":80", func(conn *net.TCPConn) { t.Error("the attacker was reached") })
	b := w.box(t, 1, "example.com")
	if status, body := get(t, b.client(t), "http://example.com/a?secret=1"); status != 200 || body != "hello from example.com" {
		t.Errorf("%d %q", status, body)
	}
	wantDials(t, w, "example.com:80")
	r := b.records(t, 1)[0]
	if r.Verdict != policy.Allow || r.Protocol != audit.HTTP || r.Name != "example.com" || r.Method != "GET" || r.Path != "/a" || r.Status != 200 ||
		r.Dst.String() != server.Listener.Addr().String() || r.BytesUp < 50 || r.BytesDown < 100 || r.Entry != "example.com" {
		t.Errorf("record %+v", r)
	}
}

// refusal is the body of a 403.
type refusal struct{ Error, Reason, Rule, Decision, Host string }

// Attack 04: every request on a connection is judged, and a refusal does not
// end it.
func TestAttack04KeepAliveSecondHost(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.site(t, "example.com", hello)
	w.site(t, "evil.example", hello)
	b := w.box(t, 1, "example.com")
	conn := b.http(t)
	in := bufio.NewReader(conn)
	for i, x := range []struct {
		host   string
		status int
	}{{"example.com", 200}, {"evil.example", 403}, {"example.com", 200}, {"sub.example.com", 403}, {"example.com", 200}} {
		fmt.Fprintf(conn, "POST /%d HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n\r\nbody", i, x.host)
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != x.status {
			t.Fatalf("%s: %d %s, %v", x.host, r.StatusCode, body, err)
		}
		if x.status != 403 {
			continue
		}
		var why refusal
		if err := json.Unmarshal(body, &why); err != nil || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s, %v", body, err)
		}
		record := b.records(t, i+1)[i]
		if why.Host != x.host || why.Decision != record.ID.String() || why.Rule != record.Rule || why.Reason != record.Reason || why.Error == "" {
			t.Errorf("the client is told %+v, the record is %+v", why, record)
		}
		if record.Verdict != policy.Deny || record.Name != x.host || record.Status != 403 || record.Dst.String() != attacker+":80" {
			t.Errorf("record %+v", record)
		}
	}
	wantDials(t, w, "example.com:80") // once: the connection is used again
}

// transcript is a server that keeps what it is sent and answers each request
// that a strict parser finds in it.
type transcript struct{ syncBuffer }

func (s *transcript) serve(conn *net.TCPConn) {
	in := bufio.NewReader(io.TeeReader(conn, s))
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}
}

// requests lists the complete requests in a text, with their hosts.
func requests(sent string) (all []string) {
	in := bufio.NewReader(strings.NewReader(sent))
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return all
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return all
		}
		all = append(all, r.Method+" "+r.Host+" "+r.RequestURI)
	}
}

// onTheWire sends text over a fresh connection and returns all that is
// answered, and what the server of example.com was sent.
func onTheWire(t *testing.T, text string) (answer string, seen []string, b *box) {
	t.Helper()
	w := newWorld(t, proxy.Limits{})
	var server transcript
	w.serve(t, "example.com:80", server.serve)
	w.serve(t, "evil.example:80", func(*net.TCPConn) { t.Error("evil.example was reached") })
	b = w.box(t, 1, "example.com")
	conn := b.http(t)
	io.WriteString(conn, text)
	conn.CloseWrite()
	answer, _ = ending(t, conn)
	return answer, requests(server.String()), b
}

// Attack 05: target, Host and method leave no doubt who is meant.
func TestAttack05AbsoluteFormAndConnect(t *testing.T) {
	for what, x := range map[string]struct {
		text   string
		status string // of the first answer
		seen   []string
	}{
		"absolute form":               {"GET http://example.com/a?b HTTP/1.1\r\nHost: example.com\r\n\r\n", "200", []string{"GET example.com /a?b"}},
		"absolute form with a port":   {"GET http://example.com:80/ HTTP/1.1\r\nHost: EXAMPLE.com\r\n\r\n", "200", []string{"GET example.com /"}},
		"absolute form to elsewhere":  {"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403", nil},
		"allowed Host, other target":  {"GET http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "400", nil},
		"allowed target, other Host":  {"GET http://example.com/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", "400", nil},
		"CONNECT":                     {"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "405", nil},
		"CONNECT to elsewhere":        {"CONNECT evil.example:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", "405", nil},
		"another port":                {"GET / HTTP/1.1\r\nHost: example.com:8080\r\n\r\n", "421", nil},
		"port 80 said":                {"GET / HTTP/1.1\r\nHost: example.com:80\r\n\r\n", "200", []string{"GET example.com /"}},
		"user":                        {"GET / HTTP/1.1\r\nHost: example.com@evil.example\r\n\r\n", "400", nil},
		"asterisk":                    {"OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n", "200", []string{"OPTIONS example.com *"}},
		"two slashes":                 {"GET //evil.example/x?y HTTP/1.1\r\nHost: example.com\r\n\r\n", "200", []string{"GET example.com //evil.example/x?y"}},
		"no host at all":              {"GET / HTTP/1.0\r\n\r\n", "403", nil},
		"URL in the path of a target": {"GET /http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "200", []string{"GET example.com /http://evil.example/"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			answer, seen, _ := onTheWire(t, x.text)
			if _, status, _ := strings.Cut(answer, " "); !strings.HasPrefix(status, x.status) || !slices.Equal(seen, x.seen) {
				t.Errorf("answer %.60q, the server saw %q", answer, seen)
			}
		})
	}
}

// Attack 07: bytes with two meanings reach no server, and what is hidden
// behind them neither.
func TestAttack07Smuggling(t *testing.T) {
	const host = "Host: example.com\r\n"
	const hidden = "GET /hidden HTTP/1.1\r\nHost: example.com\r\n\r\n"
	for what, x := range map[string]struct {
		text string
		seen []string
	}{
		"plain":                 {"GET /a HTTP/1.1\r\n" + host + "\r\n", []string{"GET example.com /a"}},
		"pipelined":             {"GET /a HTTP/1.1\r\n" + host + "\r\nGET /b HTTP/1.1\r\n" + host + "\r\n", []string{"GET example.com /a", "GET example.com /b"}},
		"length, then another":  {"POST /a HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nxyzGET /b HTTP/1.1\r\n" + host + "\r\n", []string{"POST example.com /a", "GET example.com /b"}},
		"chunks, then another":  {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\nGET /b HTTP/1.1\r\n" + host + "\r\n", []string{"POST example.com /a", "GET example.com /b"}},
		"body on GET":           {fmt.Sprintf("GET /a HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s", host, len(hidden), hidden), []string{"GET example.com /a"}},
		"CL.TE":                 {"POST /a HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, nil},
		"TE.CL":                 {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden, nil},
		"TE.TE":                 {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + hidden, nil},
		"unknown encoding":      {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n" + hidden, nil},
		"blank before colon":    {"POST /a HTTP/1.1\r\n" + host + "Content-Length : 0\r\n\r\n" + hidden, nil},
		"two lengths":           {"POST /a HTTP/1.1\r\n" + host + "Content-Length: 0\r\nContent-Length: 9\r\n\r\n" + hidden, nil},
		"two hosts":             {"GET /a HTTP/1.1\r\n" + host + "Host: evil.example\r\n\r\n", nil},
		"obs-fold":              {"GET /a HTTP/1.1\r\n" + host + "X: 1\r\n 2\r\n\r\n", nil},
		"leading CRLF":          {"GET /a HTTP/1.1\r\n" + host + "\r\n\r\n" + hidden, []string{"GET example.com /a"}},
		"bare LF":               {"GET /a HTTP/1.1\n" + host + "\n" + hidden, nil},
		"bare CR":               {"GET /a HTTP/1.1\r\n" + host + "X: 1\rY: 2\r\n\r\n", nil},
		"NUL":                   {"GET /a HTTP/1.1\r\n" + host + "X: 1\x002\r\n\r\n", nil},
		"NUL in the host":       {"GET /a HTTP/1.1\r\nHost: example.com\x00.evil.example\r\n\r\n", nil},
		"chunk without a size":  {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n\r\n" + hidden, nil},
		"negative chunk":        {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n-1\r\n" + hidden, nil},
		"huge chunk":            {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + hidden, nil},
		"bare LF after a chunk": {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nxyz\n0\r\n\r\n" + hidden, nil},
		"folded trailer":        {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n 2\r\n\r\n" + hidden, nil},
		"trailer is a request":  {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + hidden, nil},
		"body cut short":        {"POST /a HTTP/1.1\r\n" + host + "Content-Length: 10\r\n\r\n123", nil},
		"chunks cut short":      {"POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\n123", nil},
		"expectation unknown":   {"POST /a HTTP/1.1\r\n" + host + "Expect: magic\r\nContent-Length: 3\r\n\r\nxyz", nil},
		"HTTP/1.0 with chunks":  {"POST /a HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, nil},
		"version 1.2":           {"GET /a HTTP/1.2\r\n" + host + "\r\n", nil},
		"no version":            {"GET /a\r\n", nil},
		"head too long":         {"GET /a HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 70_000) + "\r\n\r\n", nil},
		"h2c upgrade":           {"GET /a HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []string{"GET example.com /a"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			answer, seen, b := onTheWire(t, x.text)
			if !slices.Equal(seen, x.seen) {
				t.Errorf("the server saw %q, want %q; the client got %.60q", seen, x.seen, answer)
			}
			if len(x.seen) > 0 {
				return
			}
			var major, status int
			if fmt.Sscanf(answer, "HTTP/1.%d %d", &major, &status); status/100 != 4 && status/100 != 5 {
				t.Errorf("the client got %.60q", answer)
			}
			if strings.Count(answer, "\r\n\r\n") != 1 || !strings.Contains(answer, "Connection: close") {
				t.Errorf("after the refusal the connection went on: %q", answer)
			}
			if r := b.records(t, 1)[0]; r.Protocol != audit.HTTP || r.Status != status || r.Reason == "" {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// Attack 08: what is judged is what is sent on.
func TestAttack08NameDifferentials(t *testing.T) {
	for what, x := range map[string]struct{ host, want string }{
		"upper case":       {"EXAMPLE.Com", "GET example.com /"},
		"trailing dot":     {"example.com.", "GET example.com /"},
		"two dots":         {"example.com..", ""},
		"empty label":      {"sub..example.com", ""},
		"leading dot":      {".example.com", ""},
		"percent":          {"example%2ecom", ""},
		"NUL":              {"example.com\x00", ""},
		"control":          {"example\x01.com", ""},
		"DEL":              {"example.com\x7f", ""},
		"blank":            {"exam ple.com", ""},
		"slash":            {"example.com/evil", ""},
		"backslash":        {"evil.example\\example.com", ""},
		"full-width dot":   {"example\uff0ecom", "GET example.com /"}, // IDNA says it is a dot
		"Cyrillic e":       {"\u0435xample.com", ""},
		"invalid UTF-8":    {"example\xff.com", ""},
		"long label":       {strings.Repeat("a", 64) + ".example.com", ""},
		"long name":        {strings.Repeat("a.", 130) + "example.com", ""},
		"wildcard":         {"*.example.com", ""},
		"false punycode":   {"xn--example.com", ""},
		"comma":            {"example.com,evil.example", ""},
		"soft hyphen":      {"exam\u00adple.com", "GET example.com /"}, // IDNA ignores it
		"tab in the end":   {"example.com\t", "GET example.com /"},     // not part of the value
		"bracket":          {"[example.com]", ""},
		"question mark":    {"example.com?x", ""},
		"hash":             {"example.com#x", ""},
		"semicolon":        {"example.com;x", ""},
		"numeric last":     {"example.1", ""},
		"only a dot":       {".", ""},
		"vertical tab":     {"example.com\v", ""},
		"non-breaking":     {"example.com\u00a0", ""},
		"zero-width space": {"example\u200b.com", "GET example.com /"}, // likewise
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			answer, seen, _ := onTheWire(t, "GET / HTTP/1.1\r\nHost: "+x.host+"\r\n\r\n")
			switch {
			case x.want != "" && !slices.Equal(seen, []string{x.want}):
				t.Errorf("the server saw %q, the client %.60q", seen, answer)
			case x.want == "" && (len(seen) > 0 || !strings.HasPrefix(answer, "HTTP/1.1 4")):
				t.Errorf("the server saw %q, the client %.60q", seen, answer)
			}
		})
	}
}

// Attack 08, in the ClientHello: names are compared in one form, and what is no
// name is none.
func TestAttack08SNIDifferentials(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "example.com:443", func(conn *net.TCPConn) { conn.Write([]byte("here")) })
	b := w.box(t, 1, "example.com")
	for name, allowed := range map[string]bool{
		"example.com": true, "EXAMPLE.com": true, "example.com.": true,
		"example.com\x00": false, "example.com\x00.evil.example": false, "evil.example\x00example.com": false,
		"example%2ecom": false, "example.com..": false, ".example.com": false, "exam ple.com": false, "*": false, "*.com": false,
		"example\xff.com": false, strings.Repeat("a", 300): false, "example.com:443": false, "example.com/": false, "1": false,
	} {
		conn := b.tls(t)
		conn.Write(clientHello(name))
		if allowed {
			if got, _ := ending(t, conn); got != "here" {
				t.Errorf("%q: got %q", name, got)
			}
			continue
		}
		wantAccessDenied(t, conn, name)
	}
}

// clientHello is a message with a server name of any bytes.
func clientHello(name string) []byte {
	n := len(name)
	sni := string([]byte{0, 0, byte((n + 5) >> 8), byte(n + 5), byte((n + 3) >> 8), byte(n + 3), 0, byte(n >> 8), byte(n)}) + name
	body := "\x03\x03" + strings.Repeat("r", 32) + "\x00" + "\x00\x02\x13\x01" + "\x01\x00" + string([]byte{byte(len(sni) >> 8), byte(len(sni))}) + sni
	body = string([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}) + body
	return append([]byte{22, 3, 1, byte(len(body) >> 8), byte(len(body))}, body...)
}

// wantAccessDenied expects the alert, then a regular end.
func wantAccessDenied(t testing.TB, conn net.Conn, what string) {
	t.Helper()
	if got, err := ending(t, conn); got != "\x15\x03\x03\x00\x02\x02\x31" || err != nil {
		t.Errorf("%q: got %q and %v, want the alert access_denied", what, got, err)
	}
}

// Attack 09: names are compared label by label.
func TestAttack09SuffixTricks(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	for _, name := range []string{"api.github.com", "a.b.github.com"} {
		w.site(t, name, hello)
		w.serve(t, name+":443", func(conn *net.TCPConn) { conn.Write([]byte("here")) })
	}
	b := w.box(t, 1, "*.github.com")
	c := b.client(t)
	for name, allowed := range map[string]bool{
		"api.github.com": true, "a.b.github.com": true, "API.GitHub.com": true,
		"github.com": false, "evilgithub.com": false, "github.com.evil.example": false, "api.github.com.evil.example": false,
		"api-github.com": false, "github.co": false, "com": false, "xgithub.com": false,
	} {
		if status, body := get(t, c, "http://"+name+"/"); (status == 200) != allowed || !allowed && status != 403 {
			t.Errorf("%s: %d %s", name, status, body)
		}
		conn := b.tls(t)
		conn.Write(clientHello(name))
		if allowed {
			if got, _ := ending(t, conn); got != "here" {
				t.Errorf("%s over TLS: %q", name, got)
			}
		} else {
			wantAccessDenied(t, conn, name)
		}
	}
}

// Attack 10: whatever some program takes for an address is not taken for a
// name, even where every name is allowed.
func TestAttack10AddressNotations(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	b := w.box(t, 1, "*")
	for _, host := range []string{
		"2130706433", "0x7f000001", "017700000001", "127.1", "0177.0.0.1", "0x7f.0.0.1", "127.0.0.0x1", "1.2.3", "1.2.3.4.5",
		"256.1.1.1", "1.2.3.4.", "[::1%25lo]", "[fe80::1%lo]", "::1", "0", "08.08.08.08",
	} {
		conn := b.http(t)
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		conn.CloseWrite()
		if answer, _ := ending(t, conn); !strings.HasPrefix(answer, "HTTP/1.1 400") {
			t.Errorf("%s: %.60q", host, answer)
		}
		conn = b.tls(t)
		conn.Write(clientHello(strings.Trim(host, "[]")))
		wantAccessDenied(t, conn, host)
	}
	for _, host := range []string{"127.0.0.1", "[::1]", "169.254.169.254", "93.184.216.34", "[::ffff:127.0.0.1]"} {
		conn := b.http(t)
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		conn.CloseWrite()
		if answer, _ := ending(t, conn); !strings.HasPrefix(answer, "HTTP/1.1 403") { // judged by the real destination
			t.Errorf("%s: %.60q", host, answer)
		}
	}
	wantDials(t, w)
}

// Attack 11: without a name the address decides, and it is not allowed.
func TestAttack11NoUsableSNI(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	b := w.box(t, 1, "*")
	_, err := handshake(t, b.tls(t), "") // no SNI
	wantAlert(t, err)
	for _, name := range []string{"93.184.216.34", "2606::1", "[2606::1]", "::ffff:1.2.3.4"} {
		conn := b.tls(t)
		conn.Write(clientHello(name))
		wantAccessDenied(t, conn, name)
	}
	wantDials(t, w)
	if r := b.records(t, 5)[0]; r.Name != "" || !strings.Contains(r.Reason, "names no server") || !strings.Contains(r.Reason, attacker) {
		t.Errorf("record %+v", r)
	}
}

// The address allows what no name does: the kernel and a client without SNI
// agree.
func TestAllowedByAddress(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	echo := func(conn *net.TCPConn) { io.Copy(conn, conn) }
	w.serve(t, attacker+":443", echo)
	w.serve(t, attacker+":80", echo)
	b := w.box(t, 1, "example.com", attacker+"/32")
	for what, text := range map[string]string{"TLS without a name": string(clientHello("1.2.3.4")), "something else": "SSH-2.0-client\r\n"} {
		for _, conn := range []*net.TCPConn{b.tls(t), b.http(t)} {
			io.WriteString(conn, text)
			conn.CloseWrite()
			if got, err := ending(t, conn); got != text || err != nil {
				t.Errorf("%s: %q, %v", what, got, err)
			}
		}
	}
	for _, r := range b.records(t, 4) {
		if r.Verdict != policy.Allow || r.Name != "" || r.BytesUp != r.BytesDown || r.BytesUp < 10 {
			t.Errorf("record %+v", r)
		}
	}
}
