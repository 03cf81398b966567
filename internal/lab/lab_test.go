package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/lab"
)

func start(t *testing.T, cfg lab.Config) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// client is an HTTP client on the node that trusts the lab's CA.
func client(t *testing.T, l *lab.Lab) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(l.CA()) {
		t.Fatal("the lab's CA is no certificate")
	}
	transport := &http.Transport{
		DialContext:       l.Node.Dial,
		TLSClientConfig:   &tls.Config{RootCAs: pool},
		ForceAttemptHTTP2: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestWebAnswersByNameOverBothFamiliesAndIsRecorded(t *testing.T) {
	l := start(t, lab.Config{})
	c := client(t, l)
	if got := get(t, c, "http://example.com/"); !strings.Contains(got, "this is example.com at") {
		t.Errorf("http://example.com/ says %q", got)
	}
	if got := get(t, c, "https://api.example.com/"); !strings.Contains(got, "this is api.example.com") {
		t.Errorf("https://api.example.com/ says %q", got)
	}
	if got, want := get(t, c, "http://1.1.1.1/ip"), `"from":"198.51.100.2"`; !strings.Contains(got, want) {
		t.Errorf("/ip says %q, want %s in it", got, want)
	}
	if got, want := get(t, c, "http://[2606:4700:4700::1111]/ip"), `"from":"2001:db8:1::2"`; !strings.Contains(got, want) {
		t.Errorf("/ip says %q, want %s in it", got, want)
	}
	if got := get(t, c, "https://1.1.1.1/"); !strings.Contains(got, "1.1.1.1") {
		t.Errorf("https by address says %q", got)
	}
	seen := l.Requests()
	if len(seen) != 5 {
		t.Fatalf("%d requests recorded, want 5: %v", len(seen), seen)
	}
	second := seen[1]
	if !second.TLS || second.ServerName != "api.example.com" || second.Proto != "HTTP/2.0" || second.Host != "api.example.com" {
		t.Errorf("second request recorded as %+v", second)
	}
	if want := netip.MustParseAddr("1.1.1.1"); seen[2].To.Addr() != want || seen[2].From.Addr() != lab.NodeIP4 {
		t.Errorf("third request went from %s to %s, want from %s to %s", seen[2].From, seen[2].To, lab.NodeIP4, want)
	}
	if !slices.ContainsFunc(l.Queries(), func(q lab.Query) bool {
		return q.Name == "api.example.com." && q.Type == "A" && q.To.String() == lab.DNSServer
	}) {
		t.Errorf("no query for api.example.com among %v", l.Queries())
	}
}

func TestSiteSpeaksAllItsDialects(t *testing.T) {
	c := client(t, start(t, lab.Config{}))
	for path, want := range map[string]string{
		"/headers":                            `"User-Agent":["Go-http-client/`,
		"/chunked/3":                          "chunk 0\nchunk 1\nchunk 2\n",
		"/events/2":                           "data: event 1\n\n",
		"/slow/1ms":                           "after 1ms",
		"/slow/2h":                            "not a duration",
		"/bytes/x":                            "not a number",
		"/redirect?to=http://1.1.1.1/status/": "404",
	} {
		if got := get(t, c, "https://example.com"+path); !strings.Contains(got, want) {
			t.Errorf("GET %s says %q, want %q in it", path, got, want)
		}
	}
	if got := get(t, c, "http://example.com/bytes/3000000"); len(got) != 3_000_000 {
		t.Errorf("/bytes/3000000 gave %d bytes", len(got))
	}
}

func TestCertificateOnlyForKnownNames(t *testing.T) {
	l := start(t, lab.Config{})
	conn, err := l.Node.Dial(t.Context(), "tcp", "1.1.1.1:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = tls.Client(conn, &tls.Config{ServerName: "unknown.example", InsecureSkipVerify: true}).Handshake()
	if err == nil {
		t.Error("a name that is not in the zone got a certificate")
	}
}

func TestEchoServers(t *testing.T) {
	l := start(t, lab.Config{})
	for _, host := range []string{"93.184.216.34", "[2606:4700:4700::1111]"} {
		for _, network := range []string{"tcp", "udp"} {
			conn, err := l.Node.Dial(t.Context(), network, fmt.Sprintf("%s:%d", host, lab.EchoPort))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 5)
			_, werr := conn.Write([]byte("hello"))
			_, rerr := io.ReadFull(conn, buf)
			if err := errors.Join(werr, rerr); err != nil || string(buf) != "hello" {
				t.Errorf("%s %s echoed %q, %v", network, host, buf, err)
			}
		}
	}
	conn, err := l.Node.Dial(t.Context(), "tcp", fmt.Sprintf("1.1.1.1:%d", lab.SSHPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, len(lab.Banner))
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != lab.Banner {
		t.Errorf("port 22 says %q, %v", buf, err)
	}
}

func TestNoRouteLeadsOut(t *testing.T) {
	l := start(t, lab.Config{})
	for name, space := range map[string]*lab.Space{"node": l.Node.Space, "internet": l.Internet} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		// 203.0.113.9 is reserved for documentation: no host has it, inside or outside.
		if conn, err := space.Dial(ctx, "tcp", "203.0.113.9:80"); err == nil {
			conn.Close()
			t.Errorf("%s reached an address that is not in the lab", name)
		}
	}
	for _, p := range l.Packets() {
		if p.To == netip.MustParseAddr("203.0.113.9") {
			return
		}
	}
	t.Errorf("the node's packet did not arrive at the internet's end of the wire: %v", l.Packets())
}

func TestCaptureSeesBothDirectionsAndWhatErrorsAreAbout(t *testing.T) {
	l := start(t, lab.Config{})
	capture, err := l.Node.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	conn, err := l.Node.Dial(t.Context(), "udp", "1.1.1.1:999")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("a port without a listener: %v, want a refusal", err)
	}
	target := netip.MustParseAddrPort("1.1.1.1:999")
	want := lab.Packet{Proto: "icmp", From: target.Addr(), To: lab.NodeIP4, Type: 3, Code: 3, About: target}
	seen := capture.Packets()
	if len(seen) != 2 || seen[0].Proto != "udp" || seen[0].ToPort != 999 || seen[1] != want {
		t.Errorf("captured %v, want a datagram and %v", seen, want)
	}
}

func TestZone(t *testing.T) {
	l := start(t, lab.Config{Records: "example.com. 60 IN A 9.9.9.9\n\nturn.example. 0 IN A 1.1.1.1\nturn.example. 0 IN A 10.0.0.1\n"})
	ask := func(network, name string, kind uint16) *dns.Msg {
		t.Helper()
		conn, err := l.Node.Dial(t.Context(), network, lab.DNSServer)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		reply, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion(name, kind), &dns.Conn{Conn: conn})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"example.com.", dns.TypeA, "9.9.9.9"},
		{"example.com.", dns.TypeAAAA, ""}, // replaced with the rest
		{"API.github.com.", dns.TypeA, "140.82.112.3"},
		{"www.example.com.", dns.TypeA, "example.com. 9.9.9.9"},
		{"evilgithub.com.", dns.TypeA, "45.60.70.80"},
		{"turn.example.", dns.TypeA, "1.1.1.1"},
		{"turn.example.", dns.TypeA, "10.0.0.1"},
		{"turn.example.", dns.TypeA, "1.1.1.1"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if c.name == "turn.example." && network == "tcp" {
				continue
			}
			var got []string
			for _, rr := range ask(network, c.name, c.kind).Answer {
				got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%s %s %s: answer %q, want %q", network, c.name, dns.Type(c.kind), got, c.want)
			}
		}
	}
	if got := ask("udp", "nothing.example.", dns.TypeA).Rcode; got != dns.RcodeNameError {
		t.Errorf("unknown name: rcode %d, want NXDOMAIN", got)
	}
	if err := l.SetRecords("nothing.example. 60 IN A 9.9.9.9"); err != nil {
		t.Fatal(err)
	}
	if got := ask("udp", "nothing.example.", dns.TypeA).Rcode; got != dns.RcodeSuccess {
		t.Errorf("after SetRecords: rcode %d, want NOERROR", got)
	}
	if err := l.SetRecords("bad record"); err == nil {
		t.Error("a bad record was accepted")
	}
}

func TestCommandRunsOnTheNode(t *testing.T) {
	l := start(t, lab.Config{})
	script := `cat /etc/resolv.conf; ls /sys/class/net; ls -A /run; ls /sys/fs/cgroup | head -1; readlink /proc/self/ns/net; echo $PPID`
	out, err := l.Node.Command(t.Context(), "sh", "-c", script).Output()
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nameserver 8.8.8.8\n", "uplink0\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), host) {
		t.Errorf("the process ran in the test's own network namespace:\n%s", out)
	}
	if err := l.Node.WriteFile("/run/note", []byte("inside"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = l.Node.Command(t.Context(), "cat", "/run/note").CombinedOutput()
	if err != nil || string(out) != "inside" {
		t.Errorf("cat /run/note: %q, %v", out, err)
	}
	if _, err := os.Stat("/run/note"); err == nil {
		t.Error("the node's /run is the host's")
	}
	_, err = l.Node.Command(t.Context(), "sh", "-c", "echo broken >&2; exit 3").Output()
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error %v, want exit status 3 and its reason", err)
	}
}

func TestInventoryShowsWhatCameAndWent(t *testing.T) {
	l := start(t, lab.Config{})
	before, err := l.Node.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(before, "interface uplink0") {
		t.Errorf("no uplink in %q", before)
	}
	script := `ip link add x0 type veth peer name x1 && nft add table inet x && mkdir /run/x && mount -t tmpfs x /run/x && echo $$ && read end`
	cmd := l.Node.Command(t.Context(), "sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	after, err := l.Node.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	fresh := slices.DeleteFunc(after, func(line string) bool { return slices.Contains(before, line) })
	want := []string{
		"interface x0",
		"interface x1",
		"mount /run/x of type tmpfs",
		fmt.Sprintf("process %s sh -c %s", strings.TrimSpace(pid), script),
		"table inet x",
	}
	if !slices.Equal(fresh, want) {
		t.Errorf("new on the node: %q, want %q", fresh, want)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err == nil {
		t.Error("read succeeded without input")
	}
}

func TestOrphansAreReaped(t *testing.T) {
	l := start(t, lab.Config{})
	// The inner shell's child outlives it and then ends.
	script := `sh -c 'sh -c "echo \$\$; exec 1>&-; sleep 0.1" &'`
	out, err := l.Node.Command(t.Context(), "sh", "-c", script).Output()
	if err != nil {
		t.Fatal(err)
	}
	orphan := "process " + strings.TrimSpace(string(out)) + " "
	deadline := time.Now().Add(10 * time.Second)
	for {
		now, err := l.Node.Inventory()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(now, func(line string) bool { return strings.HasPrefix(line, orphan) }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the orphan is still there: %q", now)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestCloseEndsEverything starts a process that detaches itself as a daemon
// does, and expects it and the namespaces to be gone with the lab.
func TestCloseEndsEverything(t *testing.T) {
	l := start(t, lab.Config{})
	out, err := l.Node.Command(t.Context(), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & readlink /proc/self/ns/net").Output()
	if err != nil {
		t.Fatal(err)
	}
	ns := strings.TrimSpace(string(out))
	if users := usersOf(t, ns); len(users) == 0 {
		t.Fatal("found no process in the node's namespace; the check below would prove nothing")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// A thread of ours that has been there is gone a moment after its work.
	deadline := time.Now().Add(20 * time.Second)
	for users := usersOf(t, ns); len(users) > 0; users = usersOf(t, ns) {
		if time.Now().After(deadline) {
			t.Fatalf("still in %s: %v", ns, users)
		}
		<-time.After(10 * time.Millisecond)
	}
	if err := l.Node.Command(t.Context(), "true").Run(); err == nil {
		t.Error("a closed lab ran a command")
	}
	if err := l.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestEndOfContextClosesTheLab(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := lab.New(ctx, lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := l.Node.Command(context.WithoutCancel(ctx), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("sleep ended by itself")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// usersOf lists the threads on this machine that are in a network namespace.
func usersOf(t *testing.T, ns string) []string {
	t.Helper()
	links, err := exec.Command("sh", "-c", "ls -l /proc/[0-9]*/task/[0-9]*/ns/net 2>/dev/null || true").Output()
	if err != nil {
		t.Fatal(err)
	}
	var users []string
	for line := range bytes.Lines(links) {
		if strings.Contains(string(line), ns) {
			users = append(users, strings.TrimSpace(string(line)))
		}
	}
	return users
}

func TestBadRecordsAreRefused(t *testing.T) {
	if l, err := lab.New(t.Context(), lab.Config{Records: "example.com. 60 IN A not-an-address"}); err == nil {
		l.Close()
		t.Error("bad record accepted")
	}
}

func TestListenOnTheInternet(t *testing.T) {
	l := start(t, lab.Config{Addresses: []netip.Addr{netip.MustParseAddr("203.0.114.1")}})
	ln, err := l.Internet.Listen("tcp", "203.0.114.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Addr, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- conn.RemoteAddr()
		conn.Close()
	}()
	conn, err := l.Node.Dial(t.Context(), "tcp", "203.0.114.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if from, ok := <-accepted; !ok || !strings.HasPrefix(from.String(), lab.NodeIP4.String()) {
		t.Errorf("accepted from %v, want from %s", from, lab.NodeIP4)
	}
}

// A lab that closes waits for its processes, and so may who started them.
func TestManyWait(t *testing.T) {
	l := start(t, lab.Config{Bare: true})
	cmd := l.Node.Command(context.Background(), "sleep", "infinity")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Errorf("it ended with %v", err)
		}
	}
}
