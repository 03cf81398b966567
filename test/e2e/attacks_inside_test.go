package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// home is what the names of public URLs resolve to inside.
const home = "198.19.255.2"

// TestAttack26PublicURLsFromInside: the node is out of reach of its sandboxes, but
// for the public URLs of sandboxes, which are destinations like any other: by name,
// where the policy allows the name, and on the terms of all callers.
func TestAttack26PublicURLsFromInside(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	target := withProber(t, s, api.NewSandbox{})
	target.Start(t, prober+" serve 8080")
	open := withProber(t, s, api.NewSandbox{})
	for name, caller := range map[string]*harness.Box{"open": open, "names": withProber(t, s, only("*."+lab.Domain))} {
		t.Run(name, func(t *testing.T) { expectCall(t, s, caller, target) })
	}
	t.Run("itself", func(t *testing.T) {
		visits{publicURL(target, "https", 8080, "/x"): "GET 8080-" + target.ID}.check(t, target)
	})
	for name, caller := range map[string]*harness.Box{"other names": withProber(t, s, only("example.com")), "nothing": withProber(t, s, only())} {
		t.Run(name, func(t *testing.T) { expectNoCall(t, s, caller, target) })
	}
	t.Run("private", func(t *testing.T) { callPrivate(t, s, open) })
	t.Run("API", func(t *testing.T) { callAPI(t, s, open, target) })
	t.Run("update", func(t *testing.T) { callUnderUpdate(t, s, target) })
	for _, p := range s.Lab.Packets() {
		if p.To == lab.NodeIP4 || p.To == lab.NodeIP6 || synthetic.Contains(p.To) {
			t.Errorf("left the node: %s", p)
		}
	}
}

// expectCall calls a sandbox from another one, and looks at what both are told of
// it.
func expectCall(t *testing.T, s *harness.Server, caller, target *harness.Box) {
	host := fmt.Sprintf("8080-%s.%s", target.ID, lab.Domain)
	for scheme, protocol := range map[string]string{"http": "http", "https": "tls"} {
		path := "/" + caller.ID + "/" + scheme
		seen := caller.MustRun(t, "curl -sS -m 20 '"+publicURL(target, scheme, 8080, path+"?q")+"'")
		if !strings.HasPrefix(seen, "GET "+host+" "+path+"?q\n") || !strings.HasSuffix(seen, "\nX-Forwarded-Proto: "+scheme) {
			t.Errorf("%s: the program saw %s", scheme, seen)
		}
		_, from, _ := strings.Cut(seen, "X-Forwarded-For: ")
		from, _, _ = strings.Cut(from, "\r")
		if addr, err := netip.ParseAddr(from); err != nil || !strings.Contains(caller.MustRun(t, prober+" addrs"), addr.String()) {
			t.Errorf("%s: the call came from %q, which is not the caller", scheme, from)
		}
		awaitRecord(t, s, caller, "the call by "+scheme, func(r record) bool {
			return r.Direction == "out" && r.Protocol == protocol && r.Name == host && r.Verdict == "allow" && r.BytesUp > 0 && r.BytesDown > 0
		})
		awaitRecord(t, s, target, "the call by "+scheme, func(r record) bool {
			return r.Direction == "in" && r.Path == path && r.Address == from && r.Verdict == "allow" && r.Status == 200
		})
	}
	for kind, want := range map[uint16]string{dns.TypeA: home, dns.TypeAAAA: "fd6d:6f61:7400:1::2"} {
		if got := addresses(lookup(t, caller, "udp", "8.8.8.8:53", strings.ToUpper(host), kind)); len(got) != 1 || got[0] != want {
			t.Errorf("%s is %v", host, got)
		}
	}
	if n := queried(s, host); n != 0 {
		t.Errorf("%d questions for %s left the node", n, host)
	}
	visits{
		publicURL(target, "http", 8081, "/"):                     `"error_code":"port_closed"`,
		"https://8080-ixxxxxxxxxxxxxxxxxxxx." + lab.Domain + "/": `"error_code":"sandbox_not_found"`,
		publicURL(target, "https", 49983, "/init"):               `"error_code":"reserved_path"`,
	}.check(t, caller)
}

// expectNoCall: a policy that does not allow the name refuses the call, and says
// so where it can.
func expectNoCall(t *testing.T, s *harness.Server, caller, target *harness.Box) {
	host := fmt.Sprintf("8080-%s.%s", target.ID, lab.Domain)
	before := len(calls(t, s, target))
	conn := mustDial(t, caller, "tcp:"+home+":80")
	answer, body := request(t, conn, bufio.NewReader(conn), get(host, "/"))
	expectRefused(t, s, caller, answer, body, "no entry of allowOut names "+host)
	if got, err := mustDial(t, caller, "tcp:"+home+":443").send(t, clientHello(host)); got != accessDenied || err != nil {
		t.Errorf("over TLS: %q, %v", got, err)
	}
	for _, scheme := range []string{"http", "https"} {
		if got := caller.Run(t, "curl -sf -m 20 '"+publicURL(target, scheme, 8080, "/")+"'"); got.Code == 0 {
			t.Errorf("%s: %+v", scheme, got)
		}
	}
	if got := calls(t, s, target); len(got) != before {
		t.Errorf("the other one was called: %+v", got[before:])
	}
}

// calls are the records of what came to the port of a sandbox's own server.
func calls(t *testing.T, s *harness.Server, box *harness.Box) []record {
	t.Helper()
	return slices.DeleteFunc(records(t, s, box), func(r record) bool { return r.Direction != "in" || r.Port != 8080 })
}

// callPrivate: inside nobody is trusted more than outside.
func callPrivate(t *testing.T, s *harness.Server, caller *harness.Box) {
	target := withProber(t, s, api.NewSandbox{Network: private()})
	target.Start(t, prober+" serve 8080")
	for _, scheme := range []string{"http", "https"} {
		url := publicURL(target, scheme, 8080, "/x")
		visits{url: `"error_code":"traffic_token_missing"`}.check(t, caller)
		for token, want := range map[string]string{"wrong": "traffic_token_invalid", *target.Made.TrafficAccessToken: "GET 8080-"} {
			if got := caller.MustRun(t, "curl -sS -m 20 -H 'E2b-Traffic-Access-Token: "+token+"' "+url); !strings.Contains(got, want) {
				t.Errorf("%s: %s", scheme, got)
			}
		}
	}
	awaitRecord(t, s, target, "the refused call", func(r record) bool {
		return r.Direction == "in" && r.Verdict == "deny" && r.Status == 403 && (strings.HasPrefix(r.Address, "198.18.") || strings.HasPrefix(r.Address, "fd6d:"))
	})
}

// callAPI tries to get from a public URL to whatever else the server has.
func callAPI(t *testing.T, s *harness.Server, caller, target *harness.Box) {
	host := fmt.Sprintf("8080-%s.%s", target.ID, lab.Domain)
	routes := "-H 'E2b-Sandbox-Id: " + target.ID + "' -H 'E2b-Sandbox-Port: 8080'"
	for _, name := range []string{"api." + lab.Domain, "sandbox." + lab.Domain, lab.Domain, "localhost", home, "127.0.0.1", lab.NodeIP4.String()} {
		for _, more := range []string{name + "/health", name + "/sandboxes", name + "/sandbox/" + target.ID + "/8080/", name + "/x' " + routes + " '"} {
			address, path, _ := strings.Cut(more, "/")
			// At home, whatever the name is, and by a connection that was opened for the
			// other sandbox.
			for _, line := range []string{
				"curl -s -m 20 --connect-to ::" + home + ":80 'http://" + address + "/" + path + "'",
				"curl -sk -m 20 --connect-to ::" + home + ":443 'https://" + address + "/" + path + "'",
				"curl -s -m 20 -H 'Host: " + address + "' 'http://" + host + "/" + path + "'",
				"curl -s -m 20 -H 'Host: " + address + "' 'https://" + host + "/" + path + "'",
			} {
				got := caller.Run(t, line)
				refused := got.Code != 0 && got.Stdout == "" || strings.Contains(got.Stdout, `"error_code":"misdirected"`) || strings.Contains(got.Stdout, `"decision":`)
				if !refused || strings.Contains(got.Stdout, "GET ") {
					t.Errorf("%s: %+v", line, got)
				}
			}
		}
	}
	// By the node's own addresses the same names are as far away as ever.
	for _, addr := range []string{lab.NodeIP4.String(), "127.0.0.1", "198.19.255.1"} {
		for _, port := range []string{"80", "443"} {
			if got := caller.Run(t, "curl -sk -m 5 --connect-to ::"+addr+":"+port+" http://"+host+"/"); got.Code == 0 {
				t.Errorf("%s port %s answers: %+v", addr, port, got)
			}
		}
	}
}

// callUnderUpdate: a call that the new policy denies ends, one that it allows lives
// on.
func callUnderUpdate(t *testing.T, s *harness.Server, target *harness.Box) {
	caller := withProber(t, s, api.NewSandbox{})
	host := fmt.Sprintf("8080-%s.%s", target.ID, lab.Domain)
	conn := mustDial(t, caller, "tcp:"+home+":80")
	if _, err := io.WriteString(conn, get(host, "/events")); err != nil {
		t.Fatal(err)
	}
	awaitLine := func(want string) {
		t.Helper()
		for {
			line, err := conn.in.ReadString('\n')
			if err != nil {
				t.Fatalf("waiting for %q: %v", want, err)
			}
			if strings.TrimSpace(line) == want {
				return
			}
		}
	}
	awaitLine("data: one")
	put := func(body string) {
		t.Helper()
		if a := s.Request(t, "PUT", "/sandboxes/"+caller.ID+"/network", body); a.Status >= 300 {
			t.Fatalf("%s: %d %s", body, a.Status, a.Body)
		}
	}
	put(`{"allowOut": ["*.` + lab.Domain + `"], "denyOut": ["0.0.0.0/0"]}`)
	visits{publicURL(target, "http", 8080, "/next"): "exit 0"}.check(t, caller)
	awaitLine("data: two")
	put(`{"denyOut": ["0.0.0.0/0"]}`)
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the call ended with %v", err)
	}
}

// TestPublicURLsAtAnotherPort: the default domain, whose URLs have a port. Programs
// that look names up get there; curl takes every name below localhost for the
// sandbox itself.
func TestPublicURLsAtAnotherPort(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{
		"--domain", "moat.localhost:6628", "--http", "0.0.0.0:80", "--https", "", "--tls-cert", "", "--tls-key", "",
	}})
	target := withProber(t, s, api.NewSandbox{})
	target.Start(t, prober+" serve 8080")
	host := fmt.Sprintf("8080-%s.moat.localhost", target.ID)
	for name, caller := range map[string]*harness.Box{"open": target, "names": s.Create(t, only("*.moat.localhost"))} {
		for port, asked := range map[string]string{":6628": host + ":6628", "": host} {
			line := "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://" + host + port + "/x\", timeout=20).read().decode())'"
			if got := caller.MustRun(t, line); !strings.HasPrefix(got, "GET "+asked+" /x") {
				t.Errorf("%s: the program saw %s", name, got)
			}
		}
	}
}
