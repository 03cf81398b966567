package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// ruled is a document that allows a host and sets headers in requests to it,
// given as pairs.
func ruled(host string, headers ...string) policy.Document {
	rule := policy.HostRule{Host: host, Strict: true}
	for i := 0; i < len(headers); i += 2 {
		rule.Headers = append(rule.Headers, policy.Header{Name: headers[i], Value: secret.New(headers[i+1])})
	}
	return policy.Document{AllowOut: []string{host}, Rules: policy.Rules{Hosts: []policy.HostRule{rule}}}
}

// withKey is ruled with the team's secret as a bearer token.
func withKey(host string) policy.Document {
	return ruled(host, "Authorization", "Bearer ${e2b.secrets.key}")
}

// secure2 is secure, with HTTP/2.
func (w *world) secure2(t testing.TB, name string, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	w.net.serve(name+":443", s.Listener.Addr().String())
	return s
}

// https is an HTTPS client in the sandbox that trusts its CA bundle and speaks
// one version of HTTP.
func (b *box) https(t testing.TB, version int) *http.Client {
	tr := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return b.tls(t), nil },
		TLSClientConfig: &tls.Config{RootCAs: b.w.trusted()},
		Protocols:       new(http.Protocols),
	}
	tr.Protocols.SetHTTP1(version == 1)
	tr.Protocols.SetHTTP2(version == 2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (w *world) trusted() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.root.PEM())
	return pool
}

// seen answers with the request as the server saw it.
type seen struct {
	Proto, Host, URI, Remote string
	Header                   http.Header
}

func show(w http.ResponseWriter, r *http.Request) {
	_ = json.NewEncoder(w).Encode(seen{r.Proto, r.Host, r.RequestURI, r.RemoteAddr, r.Header})
}

// ask sends a request and returns what the server saw of it.
func ask(t testing.TB, c *http.Client, r *http.Request) (s seen) {
	t.Helper()
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK || json.Unmarshal(body, &s) != nil {
		t.Fatalf("status %d, %s, %v", answer.StatusCode, body, err)
	}
	return s
}

func request(t testing.TB, method, url string, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	return r
}

// Attack 41: the header that is set replaces all of that name, whatever their
// case and count, and stands there once.
func TestAttack41HeaderReplaced(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", show)
		b := w.box(t, 1)
		b.change(t, withKey("example.com"))
		got := ask(t, b.https(t, version), request(t, "GET", "https://example.com/a%2Fb//c?q=1&token=2",
			"authorization", "Bearer mine", "AUTHORIZATION", "Bearer too", "Authorization", "Basic x", "X-Other", "kept"))
		if want := []string{"Bearer " + apiKey}; !slices.Equal(got.Header["Authorization"], want) {
			t.Errorf("HTTP/%d: the server sees %q, want the secret once", version, got.Header["Authorization"])
		}
		if got.Proto != fmt.Sprintf("HTTP/%d.%d", version, version%2) || got.Host != "example.com" || got.URI != "/a%2Fb//c?q=1&token=2" || got.Header.Get("X-Other") != "kept" {
			t.Errorf("HTTP/%d: the server sees %+v", version, got)
		}
		for name := range got.Header {
			if !slices.Contains([]string{"Authorization", "X-Other", "User-Agent", "Accept-Encoding"}, name) {
				t.Errorf("HTTP/%d: the server sees %s", version, name)
			}
		}
		r := b.records(t, 1)[0]
		if !r.Intercepted || r.Matched != "example.com" || !slices.Equal(r.Injected, []string{"Authorization"}) || r.Path != "/a%2Fb//c" ||
			r.Protocol != audit.HTTP || r.Status != 200 || r.Verdict != policy.Allow || r.Name != "example.com" || r.Dst.Port() == 0 {
			t.Errorf("HTTP/%d: record %+v", version, r)
		}
	}
}

// A caller's own credentials go where the rule says so, and a look-alike of the
// header that is set never stays.
func TestStrippedCredentials(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", show)
		b := w.box(t, 1)
		doc := ruled("example.com", "X-Api-Key", "${e2b.secrets.key}")
		doc.Rules.Hosts[0].StripCredentials = true
		b.change(t, doc)
		got := ask(t, b.https(t, version), request(t, "GET", "https://example.com/?a=1&API_KEY=own&b=%2B&access%5ftoken=own",
			"authorization", "own", "cookie", "own", "x_api_key", "own", "private-token", "own", "x-kept", "1"))
		if text := fmt.Sprint(got); strings.Contains(text, "own") || got.URI != "/?a=1&b=%2B" || got.Header.Get("X-Api-Key") != apiKey || got.Header.Get("X-Kept") != "1" {
			t.Errorf("HTTP/%d: the server sees %s", version, text)
		}
	}
}

// Attack 03, 05 and 06: what is sent over a connection is for its name, or is
// refused with 421, and the connection stays usable.
func TestAttack03HostIsNotSNI(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		var arrived atomic.Int64
		w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) { arrived.Add(1); show(w, r) })
		b := w.box(t, 1)
		doc := withKey("example.com")
		doc.AllowOut = append(doc.AllowOut, "other.example") // even then
		b.change(t, doc)
		c := b.https(t, version)
		for _, host := range []string{"other.example", "www.example.com", "93.184.216.34", "example.com:8443"} {
			r := request(t, "GET", "https://example.com/")
			r.Host = host
			answer, err := c.Do(r)
			if err != nil {
				t.Fatalf("HTTP/%d, %s: %v", version, host, err)
			}
			body, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode != http.StatusMisdirectedRequest || !strings.Contains(string(body), `"decision":"`) {
				t.Errorf("HTTP/%d, %s: status %d, %s", version, host, answer.StatusCode, body)
			}
		}
		if arrived.Load() != 0 {
			t.Errorf("HTTP/%d: %d requests arrived", version, arrived.Load())
		}
		ask(t, c, request(t, "GET", "https://example.com/"))
	}
}

// Attack 40: a server that cannot prove the name is sent nothing at all.
func TestAttack40UnverifiedServer(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		var arrived atomic.Int64
		w.secure2(t, "other.example", func(http.ResponseWriter, *http.Request) { arrived.Add(1) }) // with example.com's certificate
		b := w.box(t, 1)
		b.change(t, withKey("other.example"))
		status, body := get(t, b.https(t, version), "https://other.example/")
		if status != http.StatusBadGateway || !strings.Contains(body, "the server at other.example has a certificate for other names only") {
			t.Errorf("HTTP/%d: %d, %s", version, status, body)
		}
		if arrived.Load() != 0 {
			t.Errorf("HTTP/%d: a request arrived", version)
		}
		if r := b.records(t, 1)[0]; r.Status != 502 || r.Injected != nil || !strings.Contains(r.Reason, "certificate") {
			t.Errorf("HTTP/%d: record %+v", version, r)
		}
	}
}

// Attack 40 in the clear: the header goes to the address that the name has, or
// nowhere. The sandbox's choice of address does not count, however open the
// policy is.
func TestAttack40SpoofedHostInTheClear(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.site(t, "example.com", show)
	thief := httptest.NewServer(http.HandlerFunc(show))
	t.Cleanup(thief.Close)
	w.net.serve(attacker+":80", thief.Listener.Addr().String())
	b := w.box(t, 1)
	open := withKey("example.com")
	open.AllowOut, open.Default = nil, policy.Allow
	w.net.at["example.com"] = netip.MustParseAddr("93.184.216.34")
	b.change(t, open)
	c := b.client(t) // connects to the attacker's address

	if got := ask(t, c, request(t, "GET", "http://example.com/")); got.Header.Get("Authorization") != "Bearer "+apiKey {
		t.Errorf("the server sees %+v", got)
	}
	for _, host := range []string{"other.example", attacker} {
		got := ask(t, c, request(t, "GET", "http://"+host+"/"))
		if got.Header.Get("Authorization") != "" {
			t.Errorf("%s got the header", host)
		}
	}
	if got := slices.Compact(w.net.dialled()); !slices.Equal(got, []string{"example.com:80", attacker + ":80"}) {
		t.Errorf("dialled %v", got)
	}
	// An address that the policy denies is not reached by a name that no entry
	// allows.
	open.DenyOut = []string{"93.184.216.34"}
	b.change(t, open)
	if status, body := get(t, c, "http://example.com/"); status != http.StatusForbidden || !strings.Contains(body, "allows neither the name example.com nor its address") {
		t.Errorf("%d %s", status, body)
	}
}

// A secret that does not exist ends the request; one that changes is there in
// the next one, on the same connection.
func TestSecretsAreResolvedAtOnce(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		var arrived atomic.Int64
		w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) { arrived.Add(1); show(w, r) })
		b := w.box(t, 1)
		b.change(t, ruled("example.com", "X-Key", "a-${e2b.secrets.missing}-b"))
		c := b.https(t, version)
		status, body := get(t, c, "https://example.com/")
		if status != http.StatusBadGateway || !strings.Contains(body, `secret \"missing\" does not exist`) || arrived.Load() != 0 {
			t.Errorf("HTTP/%d: %d, %s, %d arrived", version, status, body, arrived.Load())
		}
		for _, value := range []string{"one", "two"} {
			w.secrets.set("team/missing", value)
			if got := ask(t, c, request(t, "GET", "https://example.com/")); got.Header.Get("X-Key") != "a-"+value+"-b" {
				t.Errorf("HTTP/%d: the server sees %q", version, got.Header.Get("X-Key"))
			}
		}
		if r := b.records(t, 3)[0]; r.Verdict != policy.Deny || r.Rule != "secret" || r.Entry != "example.com" || r.Injected != nil {
			t.Errorf("HTTP/%d: record %+v", version, r)
		}
	}
}

// Rules that judge requests: the first that matches decides, and no other
// request passes.
func TestOrderedRules(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", show)
		b := w.box(t, 1)
		b.change(t, policy.Document{Rules: policy.Rules{Ordered: []policy.OrderedRule{
			{Name: "no-admin", Match: policy.Match{Host: "example.com", Path: "/admin*"}},
			{Name: "read", Match: policy.Match{Host: "example.com", Methods: []string{"GET"}}, Allow: true,
				Inject: []policy.Header{{Name: "X-Key", Value: secret.New("v")}}},
		}}})
		c := b.https(t, version)
		if got := ask(t, c, request(t, "GET", "https://example.com/x")); got.Header.Get("X-Key") != "v" {
			t.Errorf("HTTP/%d: %+v", version, got)
		}
		for path, want := range map[string]string{"/admin/x": "rule no-admin denies", "/x/../admin": "rule no-admin denies", "/%61dmin": "rule no-admin denies"} {
			if status, body := get(t, c, "https://example.com"+path); status != http.StatusForbidden || !strings.Contains(body, want) {
				t.Errorf("HTTP/%d, %s: %d, %s", version, path, status, body)
			}
		}
	}
}

// A name that has rules and that nothing allows: the rules open nothing.
func TestRulesGrantNothing(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", show)
		b := w.box(t, 1)
		doc := withKey("example.com")
		doc.AllowOut = nil
		b.change(t, doc)
		if status, body := get(t, b.https(t, version), "https://example.com/"); status != http.StatusForbidden || !strings.Contains(body, "no entry of allowOut names example.com") {
			t.Errorf("HTTP/%d: %d, %s", version, status, body)
		}
		if got := w.net.dialled(); len(got) != 0 {
			t.Errorf("HTTP/%d: dialled %v", version, got)
		}
	}
}

// What would give the header back to the sandbox is refused, and so is what has
// no name to be looked up.
func TestHeadersAreNotGivenBack(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		var arrived atomic.Int64
		w.secure2(t, "example.com", func(http.ResponseWriter, *http.Request) { arrived.Add(1) })
		b := w.box(t, 1)
		b.change(t, withKey("example.com"))
		answer, err := b.https(t, version).Do(request(t, "TRACE", "https://example.com/"))
		if err != nil || answer.StatusCode != http.StatusForbidden || arrived.Load() != 0 {
			t.Fatalf("HTTP/%d: %v, %v, %d arrived", version, answer, err, arrived.Load())
		}
		answer.Body.Close()
		if r := b.records(t, 1)[0]; r.Verdict != policy.Deny || r.Entry != "example.com" || r.Injected != nil {
			t.Errorf("HTTP/%d: record %+v", version, r)
		}
	}
}

// Beyond the limit of a sandbox requests are refused; they do not pile up.
func TestLimitOfStreams(t *testing.T) {
	w := newWorld(t, proxy.Limits{Connections: 3})
	stop := make(chan struct{})
	var waiting sync.WaitGroup
	w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			waiting.Done()
			<-stop
		}
	})
	b := w.box(t, 1)
	b.change(t, withKey("example.com"))
	c := b.https(t, 2)
	get(t, c, "https://example.com/")
	var clients sync.WaitGroup
	waiting.Add(3)
	for range 3 {
		clients.Go(func() { get(t, c, "https://example.com/wait") })
	}
	waiting.Wait()
	if status, body := get(t, c, "https://example.com/"); status != http.StatusServiceUnavailable || !strings.Contains(body, "too many requests") {
		t.Errorf("%d %s", status, body)
	}
	close(stop)
	clients.Wait()
	if status, _ := get(t, c, "https://example.com/"); status != http.StatusOK {
		t.Errorf("afterwards: %d", status)
	}
}

// Connections to servers are shared by a sandbox's clients and by no two
// sandboxes.
func TestConnectionsOfServers(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		var mu sync.Mutex
		from := make(map[string][]string) // sandbox by connection
		w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			from[r.RemoteAddr] = append(from[r.RemoteAddr], r.Header.Get("X-Box"))
		})
		for round := range 3 {
			for n := range byte(2) {
				b := w.box(t, n+1)
				b.gen += uint64(round)
				b.publishDocument(t, ruled("example.com", "X-Box", b.id))
				if status, body := get(t, b.https(t, version), "https://example.com/"); status != 200 {
					t.Fatal(status, body)
				}
			}
		}
		mu.Lock()
		if len(from) != 2 {
			t.Errorf("HTTP/%d: connections %v, want one for each sandbox", version, from)
		}
		for addr, boxes := range from {
			if len(slices.Compact(boxes)) != 1 {
				t.Errorf("HTTP/%d: %s was used by %v", version, addr, boxes)
			}
		}
		mu.Unlock()
	}
}

// A pinning client, or one without the bundle, is told from one that is cut.
func TestClientThatDoesNotTrust(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.secure2(t, "example.com", show)
	b := w.box(t, 1)
	b.change(t, withKey("example.com"))
	conn := tls.Client(b.tls(t), &tls.Config{ServerName: "example.com", RootCAs: testRoots()})
	if err := conn.HandshakeContext(t.Context()); err == nil {
		t.Fatal("the client trusts a certificate that is none of its")
	}
	conn.Close()
	if r := b.records(t, 1)[0]; r.Rule != "handshake" || r.Verdict != policy.Deny || !r.Intercepted || !strings.Contains(r.Reason, "may not trust") {
		t.Errorf("record %+v", r)
	}
}

// Clients resume their sessions, and no sandbox that of another one.
func TestSessionsAreResumed(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.secure2(t, "example.com", show)
	sessions := tls.NewLRUClientSessionCache(4)
	for _, x := range []struct {
		box     byte
		resumed bool
	}{{1, false}, {1, true}, {2, false}, {2, true}} {
		b := w.box(t, x.box)
		b.publishDocument(t, withKey("example.com"))
		conn := tls.Client(b.tls(t), &tls.Config{ServerName: "example.com", RootCAs: w.trusted(), NextProtos: []string{"http/1.1"}, ClientSessionCache: sessions})
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK") {
			t.Fatalf("%q, %v", answer, err)
		}
		if got := conn.ConnectionState().DidResume; got != x.resumed {
			t.Errorf("sandbox %d: resumed %v, want %v", x.box, got, x.resumed)
		}
	}
}

// The protocol is what client and server would have agreed on.
func TestProtocolIsTheServers(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.secure(t, "example.com", show) // HTTP/1.1 only
	b := w.box(t, 1)
	b.change(t, withKey("example.com"))
	for offered, want := range map[string]string{"h2 http/1.1": "http/1.1", "http/1.1": "http/1.1", "": ""} {
		conn := tls.Client(b.tls(t), &tls.Config{ServerName: "example.com", RootCAs: w.trusted(), NextProtos: strings.Fields(offered)})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("offered %q: %q, want %q", offered, got, want)
		}
		conn.Close()
	}
	conn := tls.Client(b.tls(t), &tls.Config{ServerName: "example.com", RootCAs: w.trusted(), NextProtos: []string{"ftp"}})
	if err := conn.HandshakeContext(t.Context()); err == nil {
		t.Error("a protocol that nobody can look into was agreed on")
	}
}

// A client that insists on a protocol is told that the server does not speak it.
func TestServerWithoutTheProtocol(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	var arrived atomic.Int64
	w.secure(t, "example.com", func(http.ResponseWriter, *http.Request) { arrived.Add(1) }) // HTTP/1.1 only
	b := w.box(t, 1)
	b.change(t, withKey("example.com"))
	status, body := get(t, b.https(t, 2), "https://example.com/")
	if status != http.StatusBadGateway || !strings.Contains(body, "no application protocol") && !strings.Contains(body, "does not speak HTTP/2") || arrived.Load() != 0 {
		t.Errorf("%d %s", status, body)
	}
}
