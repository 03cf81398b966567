package e2e

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// Where a SOCKS5 proxy stands on the internet, and what it takes to use it.
const (
	socksAddr     = "9.9.9.9:1080"
	socksUser     = "someone"
	socksPassword = "hunter2-31415926535"
)

// startSOCKS starts a proxy on the internet of a laboratory.
func startSOCKS(t *testing.T, l *lab.Lab) *lab.SOCKS {
	t.Helper()
	ln, err := l.Internet.Listen("tcp", socksAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	s := &lab.SOCKS{User: socksUser, Password: socksPassword, Dial: func(target string) (net.Conn, error) {
		return l.Internet.Dial(context.Background(), "tcp", target)
	}}
	go s.Serve(ln)
	return s
}

// TestEgressProxy: every TCP connection that is allowed goes through the proxy,
// names as names; what is denied never gets there, and without the proxy there
// is no way out.
func TestEgressProxy(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	proxy := startSOCKS(t, s.Lab)
	spec := hosts([]string{"example.com", "api.example.com", "google.com", "1.1.1.1"}, everything, map[string]api.Transform{
		"api.example.com": {Headers: map[string]string{"X-Set": "by rule"}},
	})
	spec.Network.EgressProxy = &api.EgressProxy{Address: socksAddr, Username: socksUser, Password: socksPassword}
	box := withProber(t, s, spec)
	for _, c := range []struct{ line, want, asked string }{
		{"curl -sS -m 10 https://example.com/", "this is example.com at", "example.com:443"},
		{"curl -sS -m 10 http://example.com/", "this is example.com at", "example.com:80"},
		{"curl -sS -m 10 https://api.example.com/headers", "by rule", "api.example.com:443"},
		{"curl -sS -m 10 http://1.1.1.1/", "this is 1.1.1.1 at 1.1.1.1", "1.1.1.1:80"},
		{"bash -c 'read -t 5 line </dev/tcp/1.1.1.1/22; echo $line'", strings.TrimSpace(lab.Banner), "1.1.1.1:22"},
		{"curl -sS -m 10 http://github.com/", "no entry of allowOut names github.com", ""},
		{"curl -sS -m 10 http://8.8.8.8/", `"rule":"denyOut"`, ""},
		{"bash -c 'exec 3</dev/tcp/8.8.8.8/22 && read -t 5 line <&3; echo got $line'", "got", ""},
	} {
		got := box.Run(t, c.line)
		if asked := strings.Join(slices.Compact(proxy.Asked()), " "); !strings.Contains(got.Stdout, c.want) || asked != c.asked {
			t.Errorf("%s: %+v; the proxy was asked for %q, want %q", c.line, got, asked, c.asked)
		}
	}
	for _, name := range []string{"example.com", "api.example.com", "google.com"} {
		if n := queried(s, name); name == "google.com" && n != 0 {
			t.Errorf("the node asked for %s %d times", name, n)
		}
	}
	expectNoPassword(t, s, box)

	// A wrong password, and no proxy at all: nothing goes around it.
	for what, proxy := range map[string]api.EgressProxy{
		"does not accept the username and password": {Address: socksAddr, Username: socksUser, Password: strings.Repeat("x", len(socksPassword))},
		"cannot be used": {Address: "9.9.9.9:1081"},
	} {
		spec.Network.EgressProxy = &proxy
		box := s.Create(t, spec)
		if got := box.Run(t, "curl -sS -m 10 http://example.com/; curl -sS -m 10 https://api.example.com/"); strings.Count(got.Stdout, what) != 2 {
			t.Errorf("want %q twice: %+v", what, got)
		}
		if got := box.Run(t, "curl -sS -m 10 https://example.com/"); got.Code == 0 {
			t.Errorf("%s: a connection went around the proxy: %+v", what, got)
		}
	}
}

// expectNoPassword looks for the proxy's password in what the server shows.
func expectNoPassword(t *testing.T, s *harness.Server, box *harness.Box) {
	t.Helper()
	records, err := os.ReadFile(filepath.Join(s.DataDir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{
		"the log": s.Output(), "the records": string(records),
		"GET sandbox": s.Request(t, http.MethodGet, "/sandboxes/"+box.ID, "").Body,
	} {
		if strings.Contains(text, socksPassword) {
			t.Errorf("the proxy's password is in %s", where)
		}
	}
}
