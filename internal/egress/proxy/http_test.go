package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
)

// start makes a world with one sandbox that may reach example.com, which is
// served by h.
func start(t testing.TB, h http.HandlerFunc) (*world, *box, *http.Client) {
	w := newWorld(t, proxy.Limits{})
	w.site(t, "example.com", h)
	b := w.box(t, 1, "example.com")
	return w, b, b.client(t)
}

// raw answers every request of example.com with the same bytes.
func raw(t testing.TB, answer string) *box {
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "example.com:80", func(conn *net.TCPConn) {
		in := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			io.WriteString(conn, answer)
			if strings.Contains(answer, "close") || strings.Contains(answer, "HTTP/1.0") {
				return
			}
		}
	})
	return w.box(t, 1, "example.com")
}

// exchange sends text on a fresh connection and reads until it ends.
func (b *box) exchange(t testing.TB, text string) string {
	t.Helper()
	conn := b.http(t)
	io.WriteString(conn, text)
	conn.CloseWrite()
	got, _ := ending(t, conn)
	return got
}

func TestLargeBodiesBothWays(t *testing.T) {
	const size = 20 << 20
	_, b, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		if r.ContentLength > 0 {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		io.Copy(w, r.Body)
	})
	for _, length := range []int64{size, -1} {
		sum := sha256.New()
		body := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), sum)
		r, err := http.NewRequest("POST", "http://example.com/", io.NopCloser(body))
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = length
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		back := sha256.New()
		if n, err := io.Copy(back, answer.Body); n != size || err != nil || !bytes.Equal(sum.Sum(nil), back.Sum(nil)) {
			t.Errorf("length %d: %d bytes came back, %v", length, n, err)
		}
		answer.Body.Close()
		if answer.ContentLength != length {
			t.Errorf("length %d became %d", length, answer.ContentLength)
		}
	}
	for _, r := range b.records(t, 2) {
		if r.BytesUp < size || r.BytesDown < size || r.BytesUp > size+1<<20 {
			t.Errorf("record %+v", r)
		}
	}
}

// What a server sends arrives when it is sent, and what a client sends, too.
func TestStreaming(t *testing.T) {
	_, _, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		out.EnableFullDuplex()
		out.Flush()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprintf(w, "got %s", line)
			out.Flush()
		}
	})
	body, send := io.Pipe()
	answer, err := c.Post("http://example.com/", "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	in := bufio.NewReader(answer.Body)
	for i := range 3 {
		fmt.Fprintf(send, "%d\n", i)
		if line, err := in.ReadString('\n'); line != fmt.Sprintf("got %d\n", i) || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	send.Close()
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestTrailers(t *testing.T) {
	_, _, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Down")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		w.Header().Set("X-Down", "after "+r.Trailer.Get("X-Up")+r.Trailer.Get("X-Other"))
	})
	r, err := http.NewRequest("POST", "http://example.com/", io.NopCloser(strings.NewReader("body")))
	if err != nil {
		t.Fatal(err)
	}
	r.Trailer = http.Header{"X-Up": {"up"}}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, answer.Body)
	if got := answer.Trailer.Get("X-Down"); got != "after up" {
		t.Errorf("trailer %q", got)
	}
}

func TestExpectContinue(t *testing.T) {
	const ask = "POST / HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
	_, b, _ := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(413)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s", body)
	})
	t.Run("asked for", func(t *testing.T) {
		conn := b.http(t)
		in := bufio.NewReader(conn)
		for range 2 {
			fmt.Fprintf(conn, ask, "example.com")
			if line, err := in.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
				t.Fatalf("%q, %v", line, err)
			}
			in.ReadString('\n')
			io.WriteString(conn, "body")
			r, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(r.Body); string(body) != "body" || err != nil {
				t.Errorf("%q, %v", body, err)
			}
		}
	})
	for what, x := range map[string]struct{ text, want string }{
		"refused by the server": {strings.Replace(ask, "/ ", "/no ", 1), "HTTP/1.1 413"},
		"refused by policy":     {strings.Replace(ask, "%s", "evil.example", 1), "HTTP/1.1 403"},
	} {
		t.Run(what, func(t *testing.T) {
			conn := b.http(t)
			io.WriteString(conn, strings.Replace(x.text, "%s", "example.com", 1))
			if got, err := ending(t, conn); !strings.HasPrefix(got, x.want) || !strings.Contains(got, "\r\nConnection: close\r\n") || err != nil {
				t.Errorf("%q, %v", got, err) // and the connection ended, as was said: the body may come or not
			}
		})
	}
}

// A server that does not know Expect gets the body after a while.
func TestExpectContinueUnanswered(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "example.com:80", func(conn *net.TCPConn) {
		in := bufio.NewReader(conn)
		tp := textproto.NewReader(in)
		tp.ReadLine()
		tp.ReadMIMEHeader()
		body := make([]byte, 4)
		io.ReadFull(in, body)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n%s", body)
	})
	r, err := http.NewRequest("POST", "http://example.com/", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Expect", "100-continue")
	c := w.box(t, 1, "example.com").client(t)
	c.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, _ := io.ReadAll(answer.Body); string(body) != "body" {
		t.Errorf("%q", body)
	}
}

func TestInterimAnswers(t *testing.T) {
	_, _, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(103)
		w.WriteHeader(200)
	})
	var early string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		early += fmt.Sprint(code, h.Get("Link"))
		return nil
	}})
	r, err := http.NewRequestWithContext(ctx, "GET", "http://example.com/", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if early != "103</a.css>" || answer.StatusCode != 200 {
		t.Errorf("%q, %d", early, answer.StatusCode)
	}
}

// How an answer is delimited for the client, whatever the server did.
func TestAnswerFraming(t *testing.T) {
	const get, head, old = "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: example.com\r\n\r\n", "GET / HTTP/1.0\r\nHost: example.com\r\n\r\n"
	const oldKeep = "GET / HTTP/1.0\r\nHost: example.com\r\nConnection: keep-alive\r\n\r\n"
	for what, x := range map[string]struct{ answer, ask, want string }{
		"length":            {"HTTP/1.1 200 Fine\r\nA: b\r\nContent-Length: 2\r\n\r\nok", get, "HTTP/1.1 200 Fine\r\nA: b\r\nContent-Length: 2\r\n\r\nok"},
		"chunks":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"},
		"until the end":     {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		"old server":        {"HTTP/1.0 200 OK\r\n\r\nok", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		"HEAD":              {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", head, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"},
		"204":               {"HTTP/1.1 204 No Content\r\n\r\n", get, "HTTP/1.1 204 No Content\r\n\r\n"},
		"304 with length":   {"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"},
		"empty":             {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		"old client":        {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", old, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"},
		"old client chunks": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", oldKeep, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nok"},
		"old client stays":  {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", oldKeep, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"},
		"hop by hop":        {"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n", get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		"client closes":     {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n" + get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			got := raw(t, x.answer).exchange(t, x.ask)
			unchunked := func(s string) string { return strings.ReplaceAll(s, "1\r\no\r\n1\r\nk\r\n", "2\r\nok\r\n") }
			if unchunked(got) != unchunked(x.want) {
				t.Errorf("got  %q\nwant %q", got, x.want)
			}
		})
	}
}

// Attack 06: a client cannot change to HTTP/2, whose requests nobody would
// judge. Other protocols pass.
func TestAttack06NoUpgradeToHTTP2(t *testing.T) {
	for offered, want := range map[string]string{
		"h2c": "", "H2C": "", "HTTP/2.0": "", "h2c, websocket": "websocket", "websocket": "websocket", "tcp": "tcp", "": "",
	} {
		w := newWorld(t, proxy.Limits{})
		got := make(chan http.Header, 1)
		w.site(t, "example.com", func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
		b := w.box(t, 1, "example.com")
		b.exchange(t, "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "+offered+"\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
		h := <-got
		connection := map[bool]string{true: "Upgrade"}[want != ""]
		if h.Get("Upgrade") != want || h.Get("Connection") != connection || h.Get("HTTP2-Settings") != "" {
			t.Errorf("%q: the server gets %q", offered, h)
		}
	}
}

// What the server is sent: the client's request without what belongs to its
// connection, and nothing that tells of the proxy.
func TestRequestAsSent(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	var server syncBuffer
	w.serve(t, "example.com:80", func(conn *net.TCPConn) {
		in := bufio.NewReader(io.TeeReader(conn, &server))
		r, err := http.ReadRequest(in)
		if err == nil {
			io.Copy(io.Discard, r.Body)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	b := w.box(t, 1, "example.com")
	b.exchange(t, "PUT /a%2Fb/ü?q=%zz&x;y HTTP/1.1\r\nHost: EXAMPLE.com:80\r\nX-Hop: 1\r\nConnection: X-Hop, keep-alive\r\nKeep-Alive: 5\r\n"+
		"Proxy-Authorization: x\r\nTE: trailers, gzip\r\nAccept: a\r\nAccept: b\r\nX-Forwarded-For: 1.2.3.4\r\nContent-Length: 2\r\n\r\nok")
	const want = "PUT /a%2Fb/ü?q=%zz&x;y HTTP/1.1\r\nHost: example.com\r\nContent-Length: 2\r\nAccept: a\r\nAccept: b\r\nTe: trailers\r\nX-Forwarded-For: 1.2.3.4\r\n\r\nok"
	if got := server.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Connections to servers serve one client connection and no other, and are used
// again within it.
func TestServerConnections(t *testing.T) {
	var from syncBuffer
	_, b, _ := start(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(&from, r.RemoteAddr) })
	for range 2 {
		conn := b.http(t)
		in := bufio.NewReader(conn)
		for range 3 {
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
			if _, err := http.ReadResponse(in, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	lines := strings.Fields(from.String())
	if len(lines) != 6 || lines[0] != lines[1] || lines[0] != lines[2] || lines[3] != lines[5] || lines[0] == lines[3] {
		t.Errorf("connections %q", lines)
	}
}

// A refusal leaves the connection usable, also behind a body.
func TestRefusedWithBody(t *testing.T) {
	_, b, _ := start(t, hello)
	conn := b.http(t)
	in := bufio.NewReader(conn)
	for _, body := range []string{"Content-Length: 5\r\n\r\n12345", "Transfer-Encoding: chunked\r\n\r\n2\r\n12\r\n0\r\n\r\n"} {
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: evil.example\r\n"+body+"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
		for _, want := range []int{403, 200} {
			r, err := http.ReadResponse(in, nil)
			if err != nil || r.StatusCode != want {
				t.Fatalf("%v, %v; want %d", r, err, want)
			}
			io.Copy(io.Discard, r.Body)
		}
	}
	// A body that does not end is not waited for.
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000000000\r\n\r\n")
	go io.Copy(conn, io.LimitReader(rand.NewChaCha8([32]byte{}), 10<<20))
	if r, err := http.ReadResponse(in, nil); err != nil || r.StatusCode != 403 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := ending(t, conn); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection goes on: %v", err)
	}
}
