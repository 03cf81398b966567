package browser

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/ingress/cert"
	"github.com/moat-sandbox/moat/internal/ingress/link"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
)

// stage is an ingress on loopback with three sandboxes behind it: a private
// one, a public one that is up to no good, and one where nothing listens.
type stage struct {
	in         *ingress.Ingress
	domain     string
	addr       map[string]netip.AddrPort // of the listeners, by scheme
	mu         sync.Mutex
	targets    map[string]ingress.Target // guarded by mu
	records    []ingress.Record          // guarded by mu
	private    string
	neighbour  string
	silent     string
	port       uint16 // of the apps
	generation int    // of the private one's token
}

// Sandbox implements ingress.Lookup.
func (s *stage) Sandbox(id string) (ingress.Target, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.targets[id]
	return t, ok
}

// Finished implements ingress.Observer.
func (s *stage) Finished(r ingress.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, r)
}

func newStage(t *testing.T, domain string, authority *cert.Authority) *stage {
	t.Helper()
	s := &stage{domain: domain, addr: make(map[string]netip.AddrPort), targets: make(map[string]ingress.Target)}
	var err error
	s.in, err = ingress.New(ingress.Config{
		Domain: domain, Sandboxes: s, API: http.HandlerFunc(s.control), Observer: s, MaxUnknown: 3,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := s.in.Server()
	config := &tls.Config{GetCertificate: authority.Certificate, NextProtos: []string{"h2", "http/1.1"}}
	plain, secure := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	s.addr["http"], s.addr["https"] = addrOf(plain), addrOf(secure)
	go server.Serve(plain)
	go server.Serve(tls.NewListener(secure, config))
	t.Cleanup(func() {
		server.Close()
		s.in.Close()
	})

	s.private, s.neighbour, s.silent = s.add("127.20.0.1"), s.add("127.20.0.2"), s.add("127.20.0.3")
	app := listen(t, "127.20.0.1:0")
	s.port = addrOf(app).Port()
	go http.Serve(app, http.HandlerFunc(serveApp))
	go http.Serve(listen(t, net.JoinHostPort("127.20.0.2", strconv.Itoa(int(s.port)))), http.HandlerFunc(serveApp))
	s.rotate()
	return s
}

// add makes a public sandbox known.
func (s *stage) add(addr string) string {
	t := ingress.Target{ID: sandbox.NewID(), Addr: netip.MustParseAddr(addr), Done: make(chan struct{}), Public: true}
	s.targets[t.ID] = t
	return t.ID
}

// rotate gives the private sandbox another token.
func (s *stage) rotate() {
	s.mu.Lock()
	s.generation++
	t := s.targets[s.private]
	t.Public = false
	t.Token = secret.New(fmt.Sprintf("token-%d", s.generation))
	t.LinkKey = secret.New(fmt.Sprintf("key-%d", s.generation))
	s.targets[s.private] = t
	s.mu.Unlock()
	s.in.Recheck(s.private)
}

// control is what flow.mjs asks for behind the browser's back. It stands where
// the API does.
func (s *stage) control(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/rotate":
		s.rotate()
	case "/link":
		life, err := time.ParseDuration(r.FormValue("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		t, _ := s.Sandbox(s.private)
		parameter, _, err := link.New(t.LinkKey, t.ID, s.port, life)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.WriteString(w, parameter)
	case "/token":
		t, _ := s.Sandbox(s.private)
		io.WriteString(w, t.Token.Reveal())
	default:
		http.NotFound(w, r)
	}
}

// setting is what flow.mjs must know.
func (s *stage) setting(scheme string) map[string]any {
	return map[string]any{
		"scheme": scheme, "domain": s.domain, "port": s.addr[scheme].Port(), "app": s.port,
		"private": s.private, "neighbour": s.neighbour, "silent": s.silent,
		"control": "http://" + s.addr["http"].String(),
	}
}

// checkRecords looks at what the browser's visit came to, from this side: no
// request that a page of the neighbour made reached the private app by a link.
func (s *stage) checkRecords(t *testing.T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reached := make(map[string]int)
	for _, r := range s.records {
		if r.Sandbox == s.private && r.Verdict == ingress.Allowed && r.Reason == ingress.ByLink {
			reached[r.Method+" "+r.Path]++
		}
	}
	for _, path := range []string{"GET /", "GET /ws", "GET /events", "POST /echo"} {
		if reached[path] == 0 {
			t.Errorf("%s of the app's own page did not arrive; arrived have %v", path, reached)
		}
	}
	for path := range reached {
		if strings.Contains(path, "stolen") {
			t.Errorf("a neighbour's page got through: %s", path)
		}
	}
	refused := slices.ContainsFunc(s.records, func(r ingress.Record) bool { return r.Reason == "cross_site" })
	if !refused && s.domain != "localhost" {
		t.Error("no neighbour's request was refused: the browser sent none")
	}
}

// serveApp is the program in both sandboxes.
func serveApp(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/ws" || r.URL.Path == "/stolen-ws":
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer conn.CloseNow()
		for {
			kind, data, err := conn.Read(r.Context())
			if err != nil || conn.Write(r.Context(), kind, data) != nil {
				return
			}
		}
	case r.URL.Path == "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: one\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case r.URL.Path == "/echo" || r.URL.Path == "/stolen-echo":
		w.Header().Set("Access-Control-Allow-Origin", "*")
		fmt.Fprintf(w, "%s cookies=%q ", r.Method, r.Header.Get("Cookie"))
		io.Copy(w, r.Body)
	case strings.HasSuffix(r.URL.Path, ".js"):
		w.Header().Set("Content-Type", "text/javascript")
		io.WriteString(w, "window.loaded = true")
	case r.URL.Path == "/login":
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "1", Path: "/"})
		http.Redirect(w, r, "/home", http.StatusFound)
	default:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, "<!doctype html><title>App</title><h1>%s</h1><a href=\"next\">next</a><script src=\"own.js\"></script>", r.URL.Path)
	}
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func addrOf(ln net.Listener) netip.AddrPort { return ln.Addr().(*net.TCPAddr).AddrPort() }
