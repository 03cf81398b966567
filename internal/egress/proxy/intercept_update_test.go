package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// A change of rules counts for the next request on connections that are open.
func TestRulesChangeOnOpenConnections(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", show)
		b := w.box(t, 1)
		var dials int
		c := b.https(t, version)
		count := c.Transport.(*http.Transport).DialContext
		c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials++
			return count(ctx, network, addr)
		}
		for _, value := range []string{"one", "two"} {
			if cut := b.change(t, ruled("example.com", "X-Key", value)); cut != 0 {
				t.Errorf("HTTP/%d: %d flows cut", version, cut)
			}
			if got := ask(t, c, request(t, "GET", "https://example.com/")); got.Header.Get("X-Key") != value {
				t.Errorf("HTTP/%d: the server sees %q, want %q", version, got.Header.Get("X-Key"), value)
			}
		}
		// Without the rule nothing is set any more, and requests still pass.
		b.change(t, policy.Document{AllowOut: []string{"example.com"}})
		if got := ask(t, c, request(t, "GET", "https://example.com/")); got.Header.Get("X-Key") != "" {
			t.Errorf("HTTP/%d: the server sees %q", version, got.Header.Get("X-Key"))
		}
		b.change(t, policy.Document{AllowOut: []string{"www.example.com"}})
		if status, _ := get(t, c, "https://example.com/"); status != http.StatusForbidden {
			t.Errorf("HTTP/%d: status %d after the update", version, status)
		}
		if dials != 1 {
			t.Errorf("HTTP/%d: the client has connected %d times", version, dials)
		}
	}
}

// Attack 30: an answer that is under way ends with the policy that allows it,
// and over HTTP/2 no other one with it.
func TestAttack30CutInterceptedAnswer(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		stop := make(chan struct{})
		w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/short" {
				return
			}
			fmt.Fprintln(w, "begin")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-stop:
			}
		})
		b := w.box(t, 1)
		b.change(t, withKey("example.com"))
		c := b.https(t, version)
		answer, err := c.Do(request(t, "GET", "https://example.com/long"))
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(answer.Body)
		if line, err := in.ReadString('\n'); err != nil {
			t.Fatal(line, err)
		}
		rules := func(path string) policy.Document {
			return policy.Document{Rules: policy.Rules{Ordered: []policy.OrderedRule{
				{Name: "some", Match: policy.Match{Host: "example.com", Path: path}, Allow: true},
			}}}
		}
		if cut := b.change(t, rules("/long")); cut != 0 {
			t.Errorf("HTTP/%d: %d flows cut that are allowed", version, cut)
		}
		if cut := b.change(t, rules("/short")); cut != 1 {
			t.Errorf("HTTP/%d: %d flows cut, want 1", version, cut)
		}
		if _, err := io.ReadAll(in); err == nil {
			t.Errorf("HTTP/%d: the answer came to a regular end", version)
		}
		answer.Body.Close()
		close(stop)
		if r := b.records(t, 1)[0]; r.Verdict != policy.Deny || !strings.Contains(r.Reason, "cut by an update of the policy: no rule for example.com matches") {
			t.Errorf("HTTP/%d: record %+v", version, r)
		}
		if status, _ := get(t, c, "https://example.com/short"); status != http.StatusOK {
			t.Errorf("HTTP/%d: status %d on what is allowed", version, status)
		}
	}
}

// A connection that was passed through unseen ends when rules come that would
// have to see it; one without rules lives on.
func TestRulesEndUnseenConnections(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.secure(t, "example.com", show)
	b := w.box(t, 1, "example.com")
	conn := tls.Client(b.tls(t), &tls.Config{ServerName: "example.com", RootCAs: testRoots()})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	doc := withKey("other.example")
	doc.AllowOut = append(doc.AllowOut, "example.com")
	if cut := b.change(t, doc); cut != 0 {
		t.Errorf("%d flows cut by a rule for another host", cut)
	}
	if cut := b.change(t, withKey("example.com")); cut != 1 {
		t.Errorf("%d flows cut, want 1", cut)
	}
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("the connection lives on")
	}
}

// An upstream proxy that comes with an update takes all flows; those that went
// without it end.
func TestUpdateToAnotherWayOut(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.secure2(t, "example.com", show)
	b := w.box(t, 1)
	b.change(t, withKey("example.com"))
	c := b.https(t, 2)
	ask(t, c, request(t, "GET", "https://example.com/"))
	doc := withKey("example.com")
	doc.EgressProxy = &policy.EgressProxy{Address: "45.60.70.99:1080"}
	b.change(t, doc)
	ask(t, c, request(t, "GET", "https://example.com/"))
	if got := w.net.through(); !slices.Equal(got, []string{"", "45.60.70.99:1080"}) {
		t.Errorf("dialled by way of %q", got)
	}
}

// Attack 06 and 07 over HTTP/2, where a client can say what net/http never
// would.
func TestAttack06FramesOfOurOwn(t *testing.T) {
	for what, x := range map[string]struct {
		fields []string
		want   string
	}{
		"another authority":         {[]string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "evil.example"}, "421"},
		"Host differs":              {[]string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "example.com", "host", "evil.example"}, "400"},
		"Host alone":                {[]string{":method", "GET", ":scheme", "https", ":path", "/", "host", "evil.example"}, "421"},
		"two Hosts":                 {[]string{":method", "GET", ":scheme", "https", ":path", "/", "host", "example.com", "host", "evil.example"}, "400"},
		"a whole URL":               {[]string{":method", "GET", ":scheme", "https", ":path", "https://evil.example/", ":authority", "example.com"}, "400"},
		"blank in the path":         {[]string{":method", "GET", ":scheme", "https", ":path", "/ HTTP/1.1", ":authority", "example.com"}, "400"},
		"fragment":                  {[]string{":method", "GET", ":scheme", "https", ":path", "/#x", ":authority", "example.com"}, "400"},
		"a scheme that is not true": {[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "example.com"}, "200"},
		"CONNECT":                   {[]string{":method", "CONNECT", ":authority", "evil.example:443"}, "405"},
		"WebSocket by CONNECT":      {[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/ws", ":authority", "example.com"}, "reset"},
		"upper-case field":          {[]string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "example.com", "AUTHORIZATION", "x"}, "reset"},
		"line break in a value":     {[]string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "example.com", "x", "a\r\nAuthorization: b"}, "reset"},
		"transfer-encoding":         {[]string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "example.com", "transfer-encoding", "chunked"}, "400"},
		"user in the authority":     {[]string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "example.com@evil.example"}, "reset"},
		"what is as it should be":   {[]string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "EXAMPLE.com:443", "host", "EXAMPLE.com:443"}, "200"},
	} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", show)
		b := w.box(t, 1)
		b.change(t, withKey("example.com"))
		if got := b.frames(t, x.fields...); got != x.want {
			t.Errorf("%s: %s, want %s", what, got, x.want)
		}
		for _, target := range w.net.dialled() {
			if target != "example.com:443" {
				t.Errorf("%s: dialled %s", what, target)
			}
		}
	}
}

// frames sends one header over a connection of HTTP/2 and returns the status
// that comes back, or "reset".
func (b *box) frames(t *testing.T, fields ...string) string {
	t.Helper()
	conn := tls.Client(b.tls(t), &tls.Config{ServerName: "example.com", RootCAs: b.w.trusted(), NextProtos: []string{"h2"}})
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	var block strings.Builder
	encoder := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	_ = f.WriteSettings()
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true})
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return "reset"
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if offered, _ := frame.Value(http2.SettingEnableConnectProtocol); offered != 0 {
				t.Error("clients are told that WebSockets can be opened over HTTP/2")
			}
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return "reset"
		}
	}
}

// Connections to a server are used again also where nothing but the default
// allows it, until the policy is another one.
func TestServerConnectionsAreKept(t *testing.T) {
	open := withKey("example.com")
	open.AllowOut, open.Default = nil, policy.Allow
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", func(http.ResponseWriter, *http.Request) {})
		w.net.at["example.com"] = netip.MustParseAddr("93.184.216.34")
		b := w.box(t, 1)
		b.change(t, open)
		get := func() {
			t.Helper()
			answer, err := b.https(t, version).Do(request(t, "GET", "https://example.com/"))
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				t.Fatalf("HTTP/%d: %s", version, answer.Status)
			}
		}
		for range 3 {
			get()
		}
		if got := w.net.dialled(); len(got) != 1 {
			t.Errorf("HTTP/%d: three requests dialled %v", version, got)
		}
		b.change(t, open)
		get()
		if got := w.net.dialled(); len(got) != 2 {
			t.Errorf("HTTP/%d: after an update %v were dialled", version, got)
		}
	}
}
