package ingress

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// seen is a request as an app in a sandbox saw it.
type seen struct {
	Method, URI, Host string
	Header            http.Header
	Body              string
}

func tell(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	json.NewEncoder(rw).Encode(seen{r.Method, r.RequestURI, r.Host, r.Header, string(body)})
}

func ask(t *testing.T, c client, req *http.Request) seen {
	t.Helper()
	var s seen
	text := readAll(t, c.do(t, req).Body)
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("app said %q: %v", text, err)
	}
	return s
}

func TestMaskHost(t *testing.T) {
	w := newWorld(t)
	masked := func(port uint16) *box {
		b := newBox(port)
		b.MaskHost = "app-${PORT}.internal:${PORT}"
		return w.serveOn(b, tell)
	}
	app, guest := masked(0), masked(49983)
	w.each(t, func(t *testing.T, c client) {
		s := ask(t, c, c.request(t, "GET", app.host(), "/", nil))
		if want := fmt.Sprintf("app-%d.internal:%[1]d", app.port); s.Host != want || s.Header.Get("X-Forwarded-Host") != app.host() {
			t.Errorf("app saw Host %q and X-Forwarded-Host %q, want %q and %q", s.Host, s.Header.Get("X-Forwarded-Host"), want, app.host())
		}
		if s := ask(t, c, c.request(t, "GET", guest.host(), "/", nil)); s.Host != guest.host() {
			t.Errorf("guest saw Host %q", s.Host)
		}
	})
}

func TestTargetsArriveAsSent(t *testing.T) {
	w := newWorld(t)
	b := w.serve(tell)
	w.each(t, func(t *testing.T, c client) {
		for _, uri := range []string{
			"/", "/a/b", "/a//b", "//a", "/a%2Fb", "/a%2fb", "/%20", "/a/../b", "/./a", "/a;b=c", "/~a", "/a+b", "/%F0%9F",
			"/?", "/?a=b&c=d", "/?a;b", "/?%zz", "/?a=%", "/?=&&=", "/?a=b?c=/d", "/x?" + strings.Repeat("p=1&", 12000),
		} {
			req := c.request(t, "GET", b.host(), uri, nil)
			if got := ask(t, c, req).URI; got != uri {
				t.Errorf("%.60s arrived as %.60s", uri, got)
			}
		}
	})
}

func TestTrailers(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", "X-Sum")
		io.Copy(rw, r.Body)
		rw.Header().Set("X-Sum", "got "+r.Trailer.Get("X-In"))
		rw.Header().Set(http.TrailerPrefix+"X-Late", "late")
	})
	w.each(t, func(t *testing.T, c client) {
		req := c.request(t, "POST", b.host(), "/", io.MultiReader(strings.NewReader("body")))
		req.Trailer = http.Header{"X-In": {"42"}}
		resp := c.do(t, req)
		if body := readAll(t, resp.Body); body != "body" {
			t.Errorf("body %q", body)
		}
		if resp.Trailer.Get("X-Sum") != "got 42" || resp.Trailer.Get("X-Late") != "late" {
			t.Errorf("trailers %v", resp.Trailer)
		}
	})
}

func TestExpectContinue(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			rw.WriteHeader(http.StatusExpectationFailed)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body) // sends 100
		fmt.Fprint(rw, n)
	})
	for _, path := range []string{"/take", "/refuse"} {
		t.Run(path, func(t *testing.T) {
			conn, err := net.Dial("tcp", w.plain)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", path, b.host())
			in := bufio.NewReader(conn)
			first, err := in.ReadString('\n') // the body has not been sent yet
			if err != nil {
				t.Fatal(err)
			}
			if path == "/refuse" {
				conn.SetReadDeadline(time.Now().Add(2 * lingerPause))
				if rest, _ := io.ReadAll(in); !strings.HasPrefix(first, "HTTP/1.1 417") || strings.Contains(string(rest), "100 Continue") {
					t.Errorf("got %q and then %q", first, rest)
				}
				return
			}
			if !strings.HasPrefix(first, "HTTP/1.1 100") {
				t.Fatalf("got %q", first)
			}
			in.ReadString('\n')
			io.WriteString(conn, "12345")
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body := readAll(t, resp.Body); resp.StatusCode != 200 || body != "5" {
				t.Errorf("got %d %q", resp.StatusCode, body)
			}
		})
	}
}

func TestInformationalAnswers(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Link", "</style.css>; rel=preload")
		rw.WriteHeader(http.StatusEarlyHints)
		io.WriteString(rw, "done")
	})
	w.each(t, func(t *testing.T, c client) {
		req := c.request(t, "GET", b.host(), "/", nil)
		var hints atomic.Int32
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			hints.Add(int32(code))
			return nil
		}}
		resp := c.do(t, req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		if body := readAll(t, resp.Body); body != "done" || hints.Load() != http.StatusEarlyHints {
			t.Errorf("got %q with hints %d", body, hints.Load())
		}
	})
}

func TestAnswersArriveAsSent(t *testing.T) {
	w := newWorld(t)
	const head = "HTTP/1.1 %s\r\nConnection: close\r\n"
	answers := map[string]string{
		"/untyped":  fmt.Sprintf(head, "200 OK") + "Content-Length: 15\r\n\r\n<html>x</html>\n",
		"/204":      fmt.Sprintf(head, "204 No Content") + "X-A: b\r\n\r\n",
		"/304":      fmt.Sprintf(head, "304 Not Modified") + "ETag: \"x\"\r\n\r\n",
		"/418":      fmt.Sprintf(head, "418 Short And Stout") + "Content-Length: 0\r\n\r\n",
		"/redirect": fmt.Sprintf(head, "302 Found") + "Location: /elsewhere?x=1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
		"/unframed": fmt.Sprintf(head, "200 OK") + "\r\nuntil the end",
	}
	b := w.serveRaw(func(conn net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			io.WriteString(conn, answers[r.URL.Path])
		}
	})
	w.each(t, func(t *testing.T, c client) {
		for path, text := range answers {
			want, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := c.get(t, b.host(), path)
			if got.StatusCode != want.StatusCode || readAll(t, got.Body) != readAll(t, want.Body) {
				t.Errorf("%s: got %d, want %d", path, got.StatusCode, want.StatusCode)
			}
			for _, name := range []string{"Content-Type", "Location", "Etag", "X-A", "Set-Cookie"} {
				if fmt.Sprint(got.Header[name]) != fmt.Sprint(want.Header[name]) {
					t.Errorf("%s: %s is %q, want %q", path, name, got.Header[name], want.Header[name])
				}
			}
		}
	})
}

// How long an answer is must be clear to whoever reads it, whatever the app says.
func TestAnswersAreFramed(t *testing.T) {
	w := newWorld(t)
	b := w.serveRaw(func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if r.URL.Path == "/none" {
				io.WriteString(conn, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n")
			} else {
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\nhello")
			}
		}
	})
	w.each(t, func(t *testing.T, c client) {
		for range 2 {
			none := c.get(t, b.host(), "/none")
			if body := readAll(t, none.Body); none.StatusCode != http.StatusNoContent || body != "" || none.Header.Get("Content-Length") != "" {
				t.Errorf("an answer without a body: %s %v %q", none.Status, none.Header, body)
			}
			if body := readAll(t, c.get(t, b.host(), "/some").Body); body != "hello" {
				t.Errorf("an answer whose length is called a matter of the connection: %q", body)
			}
		}
	})
}

func TestConnectionsAreKept(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.RemoteAddr) })
	c := w.client("h1")
	first := readAll(t, c.get(t, b.host(), "/").Body)
	for range 20 {
		if got := readAll(t, c.get(t, b.host(), "/").Body); got != first {
			t.Fatalf("a second connection into the sandbox: %s after %s", got, first)
		}
	}
}

// A request with effects is sent once, also when a kept connection turns out
// to be dead.
func TestNoSecondTry(t *testing.T) {
	w := newWorld(t)
	var posts atomic.Int32
	b := w.serveRaw(func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			if r.Method == "POST" {
				posts.Add(1)
				return // without an answer
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	c := w.client("h1")
	for i := range 3 {
		readAll(t, c.get(t, b.host(), "/").Body) // leaves a connection to reuse
		got := wantFailure(t, c.do(t, c.request(t, "POST", b.host(), "/", strings.NewReader("x"))), 502, "upstream_reset")
		if got["port"] != float64(b.port) || got["sandboxId"] != b.ID {
			t.Errorf("got %v", got)
		}
		if n := posts.Load(); n != int32(i+1) {
			t.Fatalf("the app saw %d requests after %d", n, i+1)
		}
	}
}

func TestNotHTTP(t *testing.T) {
	w := newWorld(t)
	for what, text := range map[string]string{
		"another protocol": "SSH-2.0-OpenSSH_9.6\r\n",
		"nothing":          "",
		"endless header":   "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHeader+1),
		"bad header":       "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
		"unasked upgrade":  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
		"two lengths":      "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
	} {
		b := w.serveRaw(func(conn net.Conn) {
			http.ReadRequest(bufio.NewReader(conn))
			io.WriteString(conn, text)
		})
		t.Run(what, func(t *testing.T) {
			wantFailure(t, w.client("h1").get(t, b.host(), "/"), 502, "upstream_reset")
		})
	}
}

func TestTooManyInFlight(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.MaxInFlight = 2 })
	hold := make(chan struct{})
	entered := make(chan struct{}, 4)
	app := func(rw http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-hold
	}
	full, other := w.serve(app), w.serve(tell)
	c := w.client("h1")
	answers := make(chan int, 2)
	for range 2 {
		go func() {
			resp, err := c.Get("http://" + full.host() + "/")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			answers <- resp.StatusCode
		}()
		<-entered
	}
	got := wantFailure(t, c.get(t, full.host(), "/"), 429, "too_many_connections")
	if got["connectionLimit"] != 2.0 || got["error"] != "too many requests" {
		t.Errorf("got %v", got)
	}
	if ask(t, c, c.request(t, "GET", other.host(), "/", nil)).Method != "GET" {
		t.Error("a neighbour was refused too")
	}
	close(hold)
	for range 2 {
		if status := <-answers; status != 200 {
			t.Errorf("got %d", status)
		}
	}
	eventually(t, "places are given back", func() bool {
		resp := c.get(t, full.host(), "/")
		return resp.StatusCode == 200
	})
}

func TestOnlyTheTargetsAddressIsDialled(t *testing.T) {
	w := newWorld(t)
	decoy := w.serve(func(http.ResponseWriter, *http.Request) { t.Error("another address was dialled") })
	b := newBox(decoy.port)
	w.serveOn(b, tell)
	c := w.client("h1")
	// An absolute target names the decoy; its host is what routes, so it is
	// our host that counts and the sandbox's address that is dialled.
	req := c.request(t, "GET", b.host(), "/", nil)
	req.Header.Set("Host", net.JoinHostPort(decoy.Addr.String(), strconv.Itoa(int(decoy.port))))
	if s := ask(t, c, req); s.Host != b.host() {
		t.Errorf("app saw %+v", s)
	}
}
