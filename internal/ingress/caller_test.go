package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moat-sandbox/moat/internal/secret"
)

// dialPlain opens a connection to the plain listener.
func (w *world) dialPlain(t testing.TB) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", w.plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn, bufio.NewReader(conn)
}

// A plain request arrives line by line as it was sent, but for what is taken
// out and put in; net/http would sort it. So does the answer.
func TestPlainExchange(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.IsKey = func(v string) bool { return v == "e2b_key" } })
	app := new(transcript)
	b := w.serveRaw(func(conn net.Conn) {
		in := bufio.NewReader(io.TeeReader(conn, app))
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			io.WriteString(conn, "HTTP/1.1 201 Made Up\r\nzz-last: 1\r\nConnection: keep-alive\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\nAA-first:2 \r\n\r\nok")
		}
	})
	b.Public, b.Token = false, secret.New("token")
	w.boxes.put(b)
	conn, in := w.dialPlain(t)
	const request = "POST /a%2Fb?c=%zz HTTP/1.1\r\nzz-last: 1\r\nhost: HOST\r\nE2B-Traffic-Access-Token: token\r\nX-Api-Key: e2b_key\r\n" +
		"x-api-KEY: mine\r\nConnection: keep-alive\r\nX-Forwarded-For: forged\r\nForwarded: forged\r\nauthorization: bearer e2b_key\r\nKeep-Alive: 5\r\n" +
		"Content-Length: 4\r\nAA-first:\t2 \r\n\r\nbody"
	const arrives = "POST /a%2Fb?c=%zz HTTP/1.1\r\nHost: HOST\r\nzz-last: 1\r\nx-api-KEY: mine\r\nContent-Length: 4\r\nAA-first:\t2 \r\n" +
		"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: HOST\r\nX-Forwarded-Proto: http\r\n\r\nbody"
	const answer = "HTTP/1.1 201 Made Up\r\nzz-last: 1\r\nContent-Length: 2\r\nAA-first:2 \r\n\r\nok"
	for i := range 3 {
		io.WriteString(conn, strings.ReplaceAll(request, "HOST", b.host()))
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(in, got); err != nil || string(got) != answer {
			t.Fatalf("client got %q, %v", got, err)
		}
		if want := strings.Repeat(strings.ReplaceAll(arrives, "HOST", b.host()), i+1); app.String() != want {
			t.Fatalf("app was sent %q, want %q", app.String(), want)
		}
	}
	// The last one says so, and is told so.
	io.WriteString(conn, strings.ReplaceAll(strings.ReplaceAll(request, "HOST", b.host()), "Connection: keep-alive", "Connection: close"))
	rest, err := io.ReadAll(in)
	want := strings.Replace(answer, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)
	if err != nil || string(rest) != want {
		t.Errorf("at last client got %q, %v", rest, err)
	}
}

// What comes over a socket of this machine is neither from an address nor over
// TLS.
func TestPlainExchangeOnSocket(t *testing.T) {
	w := newWorld(t)
	app := new(transcript)
	b := w.serveRaw(app.serve)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := w.in.Server()
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+b.host()+"\r\nX-Forwarded-For: forged\r\n\r\n")
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	want := "GET / HTTP/1.1\r\nHost: " + b.host() + "\r\nX-Forwarded-Host: " + b.host() + "\r\nX-Forwarded-Proto: http\r\n\r\n"
	if app.String() != want {
		t.Errorf("app was sent %q, want %q", app.String(), want)
	}
}

// What isOurs says, isOursPlain says of every spelling.
func TestIsOursPlain(t *testing.T) {
	x := &exchange{in: &Ingress{isKey: func(string) bool { return true }}, target: Target{GuestToken: secret.New("x")}, route: route{address: address{port: 80}}}
	ours := 0
	for _, name := range []string{
		"E2b-Sandbox-Id", "E2b-Sandbox-Port", "E2b-Traffic-Access-Token", "Cube-Traffic-Access-Token", "Forwarded", "X-Real-Ip", "X-Access-Token",
		"X-Api-Key", "Authorization", "X-Forwarded-For", "X-Forwarded-", "X-Forwarded-Anything",
		"Accept", "Accept-Encoding", "Cookie", "Content-Type", "Etag", "From", "Cache-Control", "A", "C", "E", "F", "X", "User-Agent",
	} {
		for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			for _, value := range []string{"x", "Bearer x"} {
				is := x.isOurs(http.CanonicalHeaderKey(spelling), []string{value})
				if is {
					ours++
				}
				if plain := x.isOursPlain([]byte(spelling), []byte(value)); plain != is {
					t.Errorf("%s: %s is ours: %v, want %v", spelling, value, plain, is)
				}
			}
		}
	}
	if ours != 3*22 {
		t.Errorf("%d pairs are ours", ours)
	}
}

// Requests that are not plain are served all the same, on the same connection,
// in one piece or in two.
func TestCallerHandsOver(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s %s %d", r.Method, r.URL.Path, len(body))
	})
	large := strings.Repeat("l", maxPlain)
	const get, options = "GET /x HTTP/1.1\r\nHost: HOST\r\n\r\n", "OPTIONS /x HTTP/1.1\r\nHost: HOST\r\n\r\n"
	const post = "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\nb"
	for what, x := range map[string]struct {
		text    string
		answers []string
	}{
		"plain":            {get, []string{"GET /x 0"}},
		"plain, body":      {post, []string{"POST /x 1"}},
		"chunked":          {"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n\r\n", []string{"POST /x 1"}},
		"options":          {options, []string{"OPTIONS /x 0"}},
		"large body":       {fmt.Sprintf("POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: %d\r\n\r\n%s", len(large), large), []string{"POST /x 8192"}},
		"large head":       {"GET /x HTTP/1.1\r\nHost: HOST\r\nX: " + large + "\r\n\r\n", []string{"GET /x 0"}},
		"API":              {"GET /x HTTP/1.1\r\nHost: api.moat.test\r\n\r\n", []string{"api api.moat.test"}},
		"by path":          {"GET PATH/x HTTP/1.1\r\nHost: localhost\r\n\r\n", []string{"GET /x 0"}},
		"a header with _":  {"GET /x HTTP/1.1\r\nHost: HOST\r\nX_A: b\r\n\r\n", []string{"GET /x 0"}},
		"absolute":         {"GET http://HOST/x HTTP/1.1\r\nHost: HOST\r\n\r\n", []string{"GET /x 0"}},
		"bare line ends":   {"GET /x HTTP/1.1\nHost: HOST\n\n", []string{"GET /x 0"}},
		"two":              {get + post, []string{"GET /x 0", "POST /x 1"}},
		"plain, then not":  {post + options, []string{"POST /x 1", "OPTIONS /x 0"}},
		"not plain, plain": {options + get + get, []string{"OPTIONS /x 0", "GET /x 0", "GET /x 0"}},
	} {
		t.Run(what, func(t *testing.T) {
			text := strings.NewReplacer("HOST", b.host(), "PATH", b.path()).Replace(x.text)
			conn, in := w.dialPlain(t)
			for _, cut := range []int{len(text), 5, len(text) / 2, len(text) - 1} {
				io.WriteString(conn, text[:cut])
				time.Sleep(2 * bodyPause) // so that the pieces arrive apart
				io.WriteString(conn, text[cut:])
				for i, want := range x.answers {
					resp, err := http.ReadResponse(in, nil)
					if err != nil {
						t.Fatalf("cut at %d, answer %d: %v", cut, i, err)
					}
					if body := readAll(t, resp.Body); body != want {
						t.Errorf("cut at %d, answer %d: got %d %.60s, want %s", cut, i, resp.StatusCode, body, want)
					}
				}
			}
		})
	}
}

// What an app says unasked is nobody's answer.
func TestUnaskedAnswers(t *testing.T) {
	w := newWorld(t)
	const good = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	said := make(chan struct{}, 1) // all that there is to say to a request
	b := w.serveRaw(func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			switch r.URL.Path {
			case "/twice":
				io.WriteString(conn, good+evil)
			case "/late":
				io.WriteString(conn, good)
				io.WriteString(conn, evil)
			case "/head":
				io.WriteString(conn, good) // has a body, and must not
			default:
				io.WriteString(conn, good)
			}
			said <- struct{}{}
		}
	})
	// What is late has come, and net/http has seen it: it keeps no connection. A
	// caller looks when it uses one again.
	come := func() bool {
		up := w.upstreamOf(t, b)
		up.mu.Lock()
		defer up.mu.Unlock()
		return len(up.conns) == len(up.idle.byPort[b.port])
	}
	w.each(t, func(t *testing.T, c client) {
		for range 5 {
			for _, path := range []string{"/twice", "/", "/late", "/", "/", "/head", "/"} {
				if path == "/head" {
					c.do(t, c.request(t, "HEAD", b.host(), path, nil))
				} else if body := readAll(t, c.get(t, b.host(), path).Body); body != "good" {
					t.Errorf("%s: got %s", path, body)
				}
				<-said
				if path != "/" {
					eventually(t, "what is late has come", come)
				}
			}
		}
	})
}

// A client that connects and says nothing does not stay.
func TestSilentClientsAreCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := quietIngress(t).Server()
		ln := make(pipes)
		go srv.Serve(ln)
		defer srv.Close()
		for _, said := range []string{"", "GET / HT"} {
			ours, theirs := net.Pipe()
			ln <- theirs
			start := time.Now()
			go io.WriteString(ours, said)
			answer, _ := io.ReadAll(ours)
			if took := time.Since(start); took != DefaultHeaderTimeout {
				t.Errorf("after %q: cut off after %v with %q", said, took, answer)
			}
		}
	})
}

func TestShutdown(t *testing.T) {
	for what, end := range map[string]func(*Server) error{
		"shutdown": func(s *Server) error { return s.Shutdown(context.Background()) },
		"close":    (*Server).Close,
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			entered, finish := make(chan struct{}, 2), make(chan struct{})
			b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					entered <- struct{}{}
					<-finish
				}
				io.WriteString(rw, "done")
			})
			srv := w.in.Server()
			ln := listen(t, "127.0.0.1:0")
			served := make(chan error, 1)
			go func() { served <- srv.Serve(ln) }()
			w.plain = ln.Addr().String()
			var idle []*bufio.Reader
			for _, method := range []string{"GET", "OPTIONS"} { // for either half of the server
				conn, in := w.dialPlain(t)
				fmt.Fprintf(conn, "%s / HTTP/1.1\r\nHost: %s\r\n\r\n", method, b.host())
				if resp, err := http.ReadResponse(in, nil); err != nil || readAll(t, resp.Body) != "done" {
					t.Fatalf("%v, %v", resp, err)
				}
				idle = append(idle, in)
			}
			var busy sync.WaitGroup
			var answered atomic.Int32
			for _, method := range []string{"GET", "OPTIONS"} {
				conn, in := w.dialPlain(t)
				fmt.Fprintf(conn, "%s /slow HTTP/1.1\r\nHost: %s\r\n\r\n", method, b.host())
				<-entered
				busy.Go(func() {
					resp, err := http.ReadResponse(in, nil)
					if err != nil {
						return
					}
					if body, err := io.ReadAll(resp.Body); err == nil && string(body) == "done" {
						answered.Add(1)
					}
				})
			}
			ended := make(chan error, 1)
			go func() { ended <- end(srv) }()
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("Serve ended with %v", err)
			}
			for _, in := range idle {
				if _, err := in.ReadByte(); err == nil {
					t.Error("an idle connection got something")
				}
			}
			close(finish)
			busy.Wait()
			within(t, 30*time.Second, "the end", func() {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
			if n := answered.Load(); what == "shutdown" && n != 2 {
				t.Errorf("%d of 2 requests under way were answered", n)
			}
			if err := srv.Serve(listen(t, "127.0.0.1:0")); !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("a server that has ended serves: %v", err)
			}
		})
	}
}

func TestShutdownDoesNotWaitForEver(t *testing.T) {
	w := newWorld(t)
	entered := make(chan struct{})
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	srv := w.in.Server()
	ln := listen(t, "127.0.0.1:0")
	go srv.Serve(ln)
	w.plain = ln.Addr().String()
	conn, in := w.dialPlain(t)
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", b.host())
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	srv.Close()
	if _, err := in.ReadByte(); err == nil {
		t.Error("the connection goes on")
	}
}

// Idle connections into a sandbox are closed before its programs lose patience.
func TestIdleLinesAreReaped(t *testing.T) {
	w := newWorld(t)
	var open atomic.Int32
	b := w.serveRaw(func(conn net.Conn) {
		open.Add(1)
		defer open.Add(-1)
		in := bufio.NewReader(conn)
		for {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	c := w.client("h1")
	for range 3 {
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() { readAll(t, c.get(t, b.host(), "/").Body) })
		}
		all.Wait()
	}
	if open.Load() == 0 {
		t.Fatal("no connection is kept")
	}
	eventually(t, "all are closed", func() bool { return open.Load() == 0 })
	up := w.upstreamOf(t, b)
	up.mu.Lock()
	defer up.mu.Unlock()
	if len(up.conns) != 0 || len(up.idle.byPort) != 0 || up.idle.reaper != nil {
		t.Errorf("still known: %d connections, idle ones %v", len(up.conns), up.idle.byPort)
	}
}

// A client that leaves as soon as it has its answer takes nothing with it: the
// connection into the sandbox may already serve another.
func TestLeavingHarmsNobody(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		time.Sleep(slowAnswer + 5*time.Millisecond) // so that the client is watched
		io.Copy(rw, r.Body)
	})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 15 {
				conn, err := net.Dial("tcp", w.plain)
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\n\r\nok", b.host())
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("got %v, %v", resp, err)
				}
				conn.Close()
			}
		})
	}
	all.Wait()
}
