package acme

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// world is a real ACME authority, Pebble, with all it looks at on loopback.
type world struct {
	t         *testing.T
	directory string
	roots     *x509.CertPool // of the authority's own server
	records   string         // a directory of TXT records, which the hook writes
	log       *bytes.Buffer  // read it after Run has ended
	site      *switchable    // what answers over HTTP for every name
}

// switchable is a handler that is set after its server began.
type switchable struct {
	mu      sync.Mutex
	handler http.Handler
}

func (s *switchable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	h := s.handler
	s.mu.Unlock()
	h.ServeHTTP(w, r)
}

func (s *switchable) set(h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = h
}

// newWorld starts an authority whose certificates live for some seconds.
func newWorld(t *testing.T, life uint64) *world {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	w := &world{t: t, records: t.TempDir(), log: new(bytes.Buffer), site: &switchable{handler: http.NotFoundHandler()}}
	site := httptest.NewServer(w.site)
	t.Cleanup(site.Close)
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: life}})
	validator := va.New(quiet, site.Listener.Addr().(*net.TCPAddr).Port, 1, true, w.nameServer(), store)
	front := wfe.New(quiet, store, validator, authority, []string{"pebble.test"}, true, false, 1, 1)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)
	w.directory = server.URL + wfe.DirectoryPath
	w.roots = x509.NewCertPool()
	w.roots.AddCert(server.Certificate())
	return w
}

// nameServer says that every name is here, and tells the TXT records.
func (w *world) nameServer() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	server := &dns.Server{Listener: listener, Handler: dns.HandlerFunc(func(out dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		question := q.Question[0]
		header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET}
		switch question.Qtype {
		case dns.TypeA:
			answer.Answer = append(answer.Answer, &dns.A{Hdr: header, A: net.IPv4(127, 0, 0, 1)})
		case dns.TypeTXT:
			for _, value := range w.txt(strings.TrimSuffix(question.Name, ".")) {
				answer.Answer = append(answer.Answer, &dns.TXT{Hdr: header, Txt: []string{value}})
			}
		}
		_ = out.WriteMsg(answer)
	})}
	go server.ActivateAndServe()
	w.t.Cleanup(func() { server.Shutdown() })
	return listener.Addr().String()
}

// txt lists the values of a name, each of which is a file.
func (w *world) txt(name string) (values []string) {
	entries, _ := os.ReadDir(filepath.Join(w.records, name)) // none: no records
	for _, e := range entries {
		values = append(values, e.Name())
	}
	return values
}

// hook writes a program that sets records, and one line for each call.
func (w *world) hook(body string) string {
	path := filepath.Join(w.t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nset -eu\ncd "+w.records+"\n"+body), 0o700); err != nil {
		w.t.Fatal(err)
	}
	return path
}

const goodHook = `echo "$1 $2 ${MOAT_API_KEY-}" >> calls
case $1 in
present) mkdir -p "$2"; : > "$2/$3" ;;
cleanup) rm "$2/$3" ;;
esac`

func (w *world) config(c Config) Config {
	c.Directory, c.Roots, c.Logger = w.directory, w.roots, slog.New(slog.NewTextHandler(w.log, nil))
	if c.Dir == "" {
		c.Dir = filepath.Join(w.t.TempDir(), "acme")
	}
	return c
}

func (w *world) open(c Config) *Issuer {
	w.t.Helper()
	i, err := Open(w.config(c))
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

// run runs an issuer until done says so.
func (w *world) run(i *Issuer, what string, done func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- i.Run(ctx) }()
	deadline := time.Now().Add(time.Minute)
	for !done() && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	met := done()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		w.t.Errorf("Run ended with %v", err)
	}
	if !met {
		w.t.Fatalf("waited in vain for %s:\n%s", what, w.log)
	}
}

func has(i *Issuer) bool {
	_, err := i.Certificate(nil)
	return err == nil
}

func TestWildcardByHook(t *testing.T) {
	t.Setenv("MOAT_API_KEY", "secret")
	w := newWorld(t, 3600)
	c := w.config(Config{Names: []string{"moat.test", "*.moat.test"}, Email: "op@moat.test", Hook: w.hook(goodHook)})
	i := w.open(c)
	if _, err := i.Certificate(nil); !errors.Is(err, ErrNone) {
		t.Errorf("before the first: %v", err)
	}
	w.run(i, "a certificate", func() bool { return has(i) })
	got, _ := i.Certificate(nil)
	for _, host := range []string{"moat.test", "3000-iabc.moat.test"} {
		if err := got.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if len(got.Certificate) < 2 {
		t.Error("the chain lacks the authority's own certificate")
	}
	calls, err := os.ReadFile(filepath.Join(w.records, "calls"))
	present, cleanup := "present _acme-challenge.moat.test \n", "cleanup _acme-challenge.moat.test \n"
	if want := present + present + cleanup + cleanup; err != nil || string(calls) != want {
		t.Errorf("the hook was called as %q, want %q", calls, want)
	}
	if left := w.txt("_acme-challenge.moat.test"); len(left) > 0 {
		t.Errorf("records are left: %q", left)
	}

	// The next start has it at once, for the same names only.
	again := w.open(c)
	if kept, err := again.Certificate(nil); err != nil || !kept.Leaf.Equal(got.Leaf) || !again.account.Equal(i.account) {
		t.Errorf("not kept: %v", err)
	}
	c.Names = append(c.Names, "other.test")
	if other := w.open(c); has(other) {
		t.Error("taken up for other names")
	}
	c.Directory += "-other"
	if other, err := Open(c); err != nil || has(other) || other.account.Equal(i.account) {
		t.Errorf("taken up for another authority: %v", err)
	}
	for _, name := range []string{"account.key", "certificate.pem"} {
		if info, err := os.Stat(filepath.Join(i.home(), name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestFixedNamesOverHTTP(t *testing.T) {
	w := newWorld(t, 3600)
	i := w.open(Config{Names: []string{"moat.test", "api.moat.test"}})
	site := i.Prove(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the API") }))
	w.site.set(site)
	w.run(i, "a certificate", func() bool { return has(i) })
	got, _ := i.Certificate(nil)
	if names := slices.Sorted(slices.Values(got.Leaf.DNSNames)); !slices.Equal(names, []string{"api.moat.test", "moat.test"}) {
		t.Errorf("it is for %v", names)
	}
	if len(i.proofs) > 0 {
		t.Errorf("proofs are left: %v", i.proofs)
	}
	// What nobody asked for goes on to the API.
	answer := httptest.NewRecorder()
	site.ServeHTTP(answer, httptest.NewRequest("GET", "/.well-known/acme-challenge/x", nil))
	if answer.Body.String() != "the API" {
		t.Errorf("an unknown proof: %s", answer.Body)
	}
}

// A certificate is replaced when two thirds of its life are over, and not
// before. How long that takes is up to the authority.
func TestRenewal(t *testing.T) {
	const life = 6 * time.Second
	w := newWorld(t, uint64(life/time.Second))
	i := w.open(Config{Names: []string{"moat.test"}})
	w.site.set(i.Prove(http.NotFoundHandler()))
	var leaves []*x509.Certificate
	w.run(i, "a second certificate", func() bool {
		c, err := i.Certificate(nil)
		if err == nil && (len(leaves) == 0 || !c.Leaf.Equal(leaves[len(leaves)-1])) {
			leaves = append(leaves, c.Leaf)
		}
		return len(leaves) == 2
	})
	if due := leaves[0].NotAfter.Add(-life / 3); leaves[1].NotBefore.Before(due.Add(-time.Second)) { // certificates tell whole seconds
		t.Errorf("a certificate that was to be renewed at %v was at %v", due, leaves[1].NotBefore)
	}
}

func TestFailuresAreTold(t *testing.T) {
	for name, test := range map[string]struct{ hook, want string }{
		"hook fails":           {"echo no such zone; exit 3", "no such zone"},
		"hook does nothing":    {"true", "dns-01"},
		"hook is no program":   {"", "nosuch"},
		"authority is unknown": {"directory", "again_in=1m"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3600)
			c := w.config(Config{Names: []string{"*.moat.test"}, Hook: w.hook(test.hook)})
			switch test.hook {
			case "":
				c.Hook = "/nosuch/hook"
			case "directory":
				c.Roots = nil // nobody trusts it
			}
			var out lockedBuffer
			c.Logger = slog.New(slog.NewTextHandler(&out, nil))
			i, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			w.run(i, "a complaint", func() bool { return strings.Contains(out.String(), "no TLS certificate") })
			if !strings.Contains(out.String(), test.want) || has(i) {
				t.Errorf("want %q in\n%s", test.want, out.String())
			}
		})
	}
}

// lockedBuffer may be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestOpenRefuses(t *testing.T) {
	good := Config{Directory: "https://ca.test/dir", Names: []string{"moat.test"}, Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	for name, spoil := range map[string]func(*Config){
		"no directory":         func(c *Config) { c.Directory = "" },
		"no names":             func(c *Config) { c.Names = nil },
		"no place":             func(c *Config) { c.Dir = "" },
		"no logger":            func(c *Config) { c.Logger = nil },
		"wildcard, no hook":    func(c *Config) { c.Names = []string{"*.moat.test"} },
		"place that cannot be": func(c *Config) { c.Dir = "/dev/null/acme" },
	} {
		config := good
		spoil(&config)
		if _, err := Open(config); err == nil || !strings.HasPrefix(err.Error(), "acme: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	i, err := Open(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"account.key", "certificate.pem"} {
		if err := os.WriteFile(filepath.Join(i.home(), name), []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(good); err == nil {
			t.Errorf("opened with garbage for %s", name)
		}
		if err := os.Remove(filepath.Join(i.home(), name)); err != nil {
			t.Fatal(err)
		}
	}
}
