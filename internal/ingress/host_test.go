package ingress

import (
	"strconv"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

const someID = "iabcdefghijklmnopqrst"

func TestIDLength(t *testing.T) {
	if n := len(sandbox.NewID()); n != givenIDLength {
		t.Fatalf("sandbox.NewID gives %d characters, want %d", n, givenIDLength)
	}
}

func TestAttack36HostTricks(t *testing.T) {
	want := func(port uint16) address { return address{id: someID, port: port} }
	cases := []struct {
		host string
		kind hostKind
		addr address
		err  string // part of it
	}{
		// Sandboxes.
		{host: "8080-" + someID + ".moat.test", kind: sandboxHost, addr: want(8080)},
		{host: "1-" + someID + ".moat.test", kind: sandboxHost, addr: want(1)},
		{host: "65535-" + someID + ".moat.test", kind: sandboxHost, addr: want(65535)},
		{host: "8080-" + someID + ".moat.test:443", kind: sandboxHost, addr: want(8080)},
		{host: "8080-" + someID + ".moat.test:", kind: sandboxHost, addr: want(8080)},
		{host: "8080-" + someID + ".moat.test.", kind: sandboxHost, addr: want(8080)},
		{host: "8080-" + someID + ".moat.test.:443", kind: sandboxHost, addr: want(8080)},
		{host: "8080-" + someID + ".MOAT.Test", kind: sandboxHost, addr: want(8080)},
		{host: "8080-" + someID + "-6532622b.moat.test", kind: sandboxHost, addr: want(8080)},
		{host: "8080-nobodyhasthis.moat.test", kind: sandboxHost, addr: address{id: "nobodyhasthis", port: 8080}},
		{host: "8080-x.moat.test", kind: sandboxHost, addr: address{id: "x", port: 8080}},

		// The same below localhost, whatever the domain.
		{host: "8080-" + someID + ".localhost", kind: sandboxHost, addr: want(8080)},
		{host: "8080-" + someID + ".LOCALHOST:6628", kind: sandboxHost, addr: want(8080)},

		// Shared hosts.
		{host: "sandbox.moat.test", kind: sharedHost},
		{host: "SANDBOX.moat.test.:8443", kind: sharedHost},
		{host: "localhost", kind: sharedHost},
		{host: "localhost:3000", kind: sharedHost},
		{host: "127.0.0.1", kind: sharedHost},
		{host: "127.0.0.1:80", kind: sharedHost},
		{host: "[::1]", kind: sharedHost},
		{host: "[::1]:80", kind: sharedHost},

		// Everybody else's.
		{host: ""},
		{host: "moat.test"},
		{host: "api.moat.test"},
		{host: "api.moat.test:443"},
		{host: "API.moat.test"},
		{host: "dash-board.moat.test"},
		{host: "a.b.moat.test"},
		{host: "sandbox.other.test"},
		{host: "ip-10-0-0-5.ec2.internal"},
		{host: "10-0-0-5.nodes.internal"},
		{host: "0177.0.0.1"},
		{host: "2130706433"},
		{host: "[localhost]"},
		{host: "[127.0.0.1]"},
		{host: "localhost:http"},
		{host: "sandbox.moat.test:x"},
		{host: "moat.test.."},

		// Meant as a sandbox, and refused.
		{host: "0-" + someID + ".moat.test", err: "port"},
		{host: "65536-" + someID + ".moat.test", err: "port"},
		{host: "99999999999999999999-" + someID + ".moat.test", err: "port"},
		{host: "-1-" + someID + ".moat.test", err: "port"},
		{host: "+1-" + someID + ".moat.test", err: "port"},
		{host: "080-" + someID + ".moat.test", err: "port"},
		{host: "0x50-" + someID + ".moat.test", err: "port"},
		{host: "80_80-" + someID + ".moat.test", err: "port"},
		{host: "undefined-" + someID + ".moat.test", err: "port"},
		{host: "-" + someID + ".moat.test", err: "port"},
		{host: "8080-.moat.test", err: "ID"},
		{host: "8080-" + strings.ToUpper(someID) + ".moat.test", err: "ID"},
		{host: "8080-" + someID + "-a-b.moat.test", err: "ID"},
		{host: "8080-" + someID + "-.moat.test", err: "ID"},
		{host: "8080--" + someID + ".moat.test", err: "ID"},
		{host: "8080-i_bc.moat.test", err: "ID"},
		{host: "8080-" + someID + "%00.moat.test", err: "ID"},
		{host: "8080-\u212a.moat.test", err: "ID"},
		{host: "8080-i" + strings.Repeat("a", 60) + ".moat.test", err: "longer"},
		{host: "x.8080-" + someID + ".moat.test", err: "labels"},
		{host: "8080-" + someID + ".x.moat.test", err: "labels"},
		{host: ".8080-" + someID + ".moat.test", err: "labels"},
		{host: "8080-" + someID + "..moat.test", err: "labels"},
		{host: "8080-" + someID + ".other.test", err: "not below"},
		{host: "8080-" + someID + ".evilmoat.test", err: "not below"},
		{host: "8080-" + someID + ".moat.test.other.test", err: "not below"},
		{host: "8080-" + someID + ".moat.test..", err: "not below"},
		{host: "8080-" + someID + ".moat.test:x", err: "not below"},
		{host: "8080-" + someID + ".moat.test:80:80", err: "not below"},
		{host: "8080-" + someID + ".moat.te\u017ft", err: "not below"},
		{host: "8080-" + someID, err: "not below"},
		{host: "8080-" + someID + ".x.localhost", err: "labels"},
		{host: "8080-" + someID + ".localhost.test", err: "not below"},
		{host: "[8080-" + someID + ".moat.test]", err: "not below"},
	}
	for _, c := range cases {
		kind, addr, err := parseHost(c.host, testDomain)
		if kind != c.kind || addr != c.addr || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("parseHost(%q) = %d, %+v, %v; want %d, %+v, error with %q", c.host, kind, addr, err, c.kind, c.addr, c.err)
		}
	}
}

func TestParseHostBelowLocalhost(t *testing.T) {
	kind, addr, err := parseHost("3000-"+someID+".localhost:8080", "localhost")
	if kind != sandboxHost || addr != (address{id: someID, port: 3000}) || err != nil {
		t.Errorf("got %d, %+v, %v", kind, addr, err)
	}
	if kind, _, err := parseHost("localhost:8080", "localhost"); kind != sharedHost || err != nil {
		t.Errorf("localhost: got %d, %v", kind, err)
	}
}

func TestCheckDomain(t *testing.T) {
	for _, ok := range []string{"localhost", "moat.test", "a-b.example.com", "x1.1x"} {
		if got, err := checkDomain(strings.ToUpper(ok)); err != nil || got != ok {
			t.Errorf("checkDomain(%q) = %q, %v", strings.ToUpper(ok), got, err)
		}
	}
	bad := []string{"", ".", "moat.test.", ".moat.test", "a..b", "moat.test:8443", "10.0.0.1", "::1", "a_b.test",
		"-a.test", "a-.test", "ü.test", "a b", "https://moat.test", strings.Repeat("a", 64) + ".test",
		strings.Repeat("a.", 100) + "test"}
	for _, domain := range bad {
		if got, err := checkDomain(domain); err == nil {
			t.Errorf("checkDomain(%q) = %q, want an error", domain, got)
		}
	}
}

// FuzzParseHost holds the parser to what an address is: whatever is accepted
// as a sandbox's host must be one of the few spellings of the address found.
func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"8080-" + someID + ".moat.test:443", "1-a-b.moat.test.", "[::1]:80", "-1-x.moat.test", "sandbox.moat.test"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		kind, addr, err := parseHost(host, testDomain)
		if kind != sandboxHost {
			if addr != (address{}) || err != nil && kind != foreignHost {
				t.Fatalf("parseHost(%q) = %d, %+v, %v", host, kind, addr, err)
			}
			return
		}
		if err != nil || addr.port == 0 || !isAlnum(addr.id) {
			t.Fatalf("parseHost(%q) = %+v, %v", host, addr, err)
		}
		label, rest, _ := strings.Cut(host, ".")
		base := strconv.Itoa(int(addr.port)) + "-" + addr.id
		if client, legacy := strings.CutPrefix(label, base+"-"); label != base && (!legacy || !isAlnum(client)) {
			t.Fatalf("parseHost(%q) = %+v, which is written %q", host, addr, base)
		}
		name, port, _ := strings.Cut(rest, ":")
		if !strings.EqualFold(strings.TrimSuffix(name, "."), testDomain) || strings.Trim(port, "0123456789") != "" {
			t.Fatalf("parseHost(%q) accepts the domain %q", host, rest)
		}
	})
}
