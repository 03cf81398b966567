package ingress

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/internal/secret"
)

// witness is an Observer.
type witness struct {
	mu   sync.Mutex
	seen []Record
}

func (o *witness) Finished(r Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, r)
}

// next waits for the n-th record.
func (o *witness) next(t *testing.T, n int) Record {
	t.Helper()
	var r Record
	eventually(t, "a record", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		if len(o.seen) > n {
			r = o.seen[n]
		}
		return len(o.seen) > n
	})
	return r
}

func TestRecords(t *testing.T) {
	o := new(witness)
	w := newWorld(t, func(cfg *Config) { cfg.Observer = o; cfg.MaxInFlight = 3 })
	app := func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		rw.WriteHeader(http.StatusCreated)
		io.WriteString(rw, "hello")
	}
	open, private, ws := w.serve(app), w.servePrivate(app), w.serve(echoWebSocket)
	closed := newBox(9)
	w.boxes.put(closed)
	rude := w.serveRaw(func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
	})
	token := map[string]string{"E2b-Traffic-Access-Token": private.Token.Reveal()}
	for n, x := range []struct {
		what, method, host, path, body string
		h                              map[string]string
		want                           Record
	}{
		{"public", "POST", open.host(), "/a%2Fb?secret=1", "12345678", nil,
			Record{Sandbox: open.ID, Port: open.port, Path: "/a%2Fb", Verdict: Allowed, Reason: "public", Status: 201, BytesIn: 8, BytesOut: 5}},
		{"token", "GET", private.host(), "/", "", token,
			Record{Sandbox: private.ID, Port: private.port, Path: "/", Verdict: Allowed, Reason: "traffic_token", Status: 201, BytesOut: 5}},
		{"by path", "GET", "localhost", private.path() + "/x?y", "", token,
			Record{Sandbox: private.ID, Port: private.port, Path: private.path() + "/x", Verdict: Allowed, Reason: "traffic_token", Status: 201, BytesOut: 5}},
		{"no token", "GET", private.host(), "/x?y", "", nil,
			Record{Sandbox: private.ID, Port: private.port, Path: "/x", Verdict: Denied, Reason: "traffic_token_missing", Status: 403}},
		{"link", "GET", private.host(), "/x?" + newLink(t, private, time.Hour), "", nil,
			Record{Sandbox: private.ID, Port: private.port, Path: "/x", Verdict: Answered, Reason: "link_followed", Status: 303}},
		{"cookie", "GET", private.host(), "/x", "", map[string]string{"Cookie": cookieFor(w.client("h1"), private, time.Now().Add(time.Hour))},
			Record{Sandbox: private.ID, Port: private.port, Path: "/x", Verdict: Allowed, Reason: "link", Status: 201, BytesOut: 5}},
		{"preflight", "OPTIONS", private.host(), "/x", "", map[string]string{"Origin": "https://x.example", "Access-Control-Request-Method": "PUT"},
			Record{Sandbox: private.ID, Port: private.port, Path: "/x", Verdict: Answered, Reason: "preflight", Status: 204}},
		{"no slash", "GET", "localhost", open.path(), "", nil,
			Record{Sandbox: open.ID, Port: open.port, Path: open.path(), Verdict: Answered, Reason: "slash_added", Status: 307}},
		{"closed port", "GET", closed.host(), "/", "", nil,
			Record{Sandbox: closed.ID, Port: 9, Path: "/", Verdict: Allowed, Reason: "public", Status: 502, Failure: "port_closed"}},
		{"broken off", "GET", rude.host(), "/", "", nil,
			Record{Sandbox: rude.ID, Port: rude.port, Path: "/", Verdict: Allowed, Reason: "public", Status: 200, Failure: "broken_off", BytesOut: 4}},
	} {
		c := w.client("h1")
		req := c.request(t, x.method, x.host, x.path, strings.NewReader(x.body))
		for name, value := range x.h {
			req.Header.Set(name, value)
		}
		start := time.Now()
		resp := c.do(t, req)
		io.Copy(io.Discard, resp.Body)
		got := o.next(t, n)
		x.want.Method, x.want.Client = x.method, netip.MustParseAddr("127.0.0.1")
		if got.Time.Before(start) || got.Duration <= 0 || got.Duration > time.Since(start) {
			t.Errorf("%s: at %v for %v", x.what, got.Time, got.Duration)
		}
		got.Time, got.Duration = time.Time{}, 0
		if !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", x.what, got, x.want)
		}
		if text := fmt.Sprintf("%+v", got); strings.Contains(text, private.Token.Reveal()) || strings.Contains(text, "secret=") || strings.Contains(text, "moat-link=") {
			t.Errorf("%s: a credential is in %s", x.what, text)
		}
	}
	o.mu.Lock()
	before := len(o.seen)
	o.mu.Unlock()
	wantFailure(t, w.client("h1").get(t, "8080-"+someID+"."+testDomain, "/"), 502, "sandbox_not_found")
	conn := dialWebSocket(t, w.client("h1"), ws)
	ctx := context.Background()
	if err := conn.Write(ctx, websocket.MessageText, []byte("12345")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(ctx); err != nil {
		t.Fatal(err)
	}
	if m := w.in.Metrics(); m.Total.InFlight != 1 || m.Sandboxes[ws.ID].InFlight != 1 || m.Sandboxes[ws.ID].BytesIn == 0 {
		t.Errorf("while a web socket is open: %+v", m)
	}
	conn.CloseNow()
	if got := o.next(t, before); got.Status != 101 || got.BytesIn < 5 || got.BytesOut < 5 || got.Sandbox != ws.ID {
		t.Errorf("web socket: got %+v", got)
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	b, private := w.serve(func(rw http.ResponseWriter, r *http.Request) { io.Copy(rw, r.Body) }), w.servePrivate(tell)
	w.each(t, func(t *testing.T, c client) {
		before := w.in.Metrics()
		readAll(t, c.do(t, c.request(t, "POST", b.host(), "/", strings.NewReader("12345"))).Body)
		readAll(t, c.get(t, "api."+testDomain, "/").Body)
		wantFailure(t, c.get(t, private.host(), "/"), 403, "traffic_token_missing")
		wantFailure(t, c.get(t, "8080-"+someID+"."+testDomain, "/"), 502, "sandbox_not_found")
		wantFailure(t, c.get(t, "0-"+someID+"."+testDomain, "/"), 400, "bad_host")
		eventually(t, "all is over", func() bool { return w.in.Metrics().Total.InFlight == 0 })
		m := w.in.Metrics()
		if n := m.Total.Requests - before.Total.Requests; n != 4 {
			t.Errorf("%d requests", n)
		}
		if in, out := m.Total.BytesIn-before.Total.BytesIn, m.Total.BytesOut-before.Total.BytesOut; in != 5 || out != 5 {
			t.Errorf("%d bytes in, %d out", in, out)
		}
		for _, code := range []string{"traffic_token_missing", "sandbox_not_found", "bad_host"} {
			if n := m.Total.Failures[code] - before.Total.Failures[code]; n != 1 {
				t.Errorf("%s: %d", code, n)
			}
		}
		one, other := m.Sandboxes[b.ID], m.Sandboxes[private.ID]
		if one.Requests-before.Sandboxes[b.ID].Requests != 1 || other.Failures["traffic_token_missing"] != other.Requests {
			t.Errorf("sandboxes %+v and %+v", one, other)
		}
		if _, ok := m.Sandboxes[someID]; ok || len(m.Sandboxes) != 2 {
			t.Errorf("counted for sandboxes %v", m.Sandboxes)
		}
	})
	w.ended(b)
	eventually(t, "an ended sandbox is not counted any more", func() bool { return len(w.in.Metrics().Sandboxes) == 1 })
	if w.in.Metrics().Total.BytesIn == 0 {
		t.Error("what it did is gone from the total")
	}
}

func TestPortVisibility(t *testing.T) {
	w := newWorld(t)
	w.each(t, func(t *testing.T, c client) {
		for _, x := range []struct {
			public, excepted bool
		}{{true, false}, {false, true}} {
			b := newBox(0)
			b.Public, b.Token, b.LinkKey = x.public, secret.New("t"), linkKey
			w.serveOn(b, tell)
			other := *b
			other.port++
			b.Ports = map[uint16]bool{b.port: x.excepted, 49983: x.excepted}
			w.boxes.put(b)
			resp := c.get(t, b.host(), "/")
			if x.excepted {
				readAll(t, resp.Body)
				wantFailure(t, c.get(t, other.host(), "/"), 403, "traffic_token_missing")
			} else {
				wantFailure(t, resp, 403, "traffic_token_missing")
				req := c.request(t, "GET", b.host(), "/", nil)
				req.Header.Set("E2b-Traffic-Access-Token", "t")
				ask(t, c, req)
				if resp := c.get(t, b.host(), "/?"+newLink(t, b, time.Hour)); resp.StatusCode != 303 {
					t.Errorf("a link to a private port of a public sandbox: %d", resp.StatusCode)
				}
			}
			if got := b.public(49983); got != x.public {
				t.Errorf("the guest's port of a sandbox with public %v: %v", x.public, got)
			}
		}
	})
}
