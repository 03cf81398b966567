package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// inside is a connection that a sandbox has made, in the test's hands: the
// prober in it passes on every byte. A reset reads as syscall.ECONNRESET.
type inside struct {
	net.Conn // our end of a pipe
	in       *bufio.Reader
	stop     context.CancelFunc
	ended    chan struct{} // closed when the prober has ended
	reset    bool          // it ended with a reset; set before ended is closed
}

// exitReset is what the prober exits with then.
const exitReset = 4

// dial connects from inside a sandbox to "tcp:ADDRESS" or "udp:ADDRESS". Of a
// connection that cannot be made it returns what the prober calls that.
func dial(t *testing.T, box *harness.Box, target string) (*inside, string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	ours, theirs := net.Pipe()
	c := &inside{Conn: ours, in: bufio.NewReader(ours), stop: stop, ended: make(chan struct{})}
	p, err := box.Commands.Start(ctx, client.Command{Args: []string{prober, "pipe", target}, Stdin: theirs, Stdout: theirs})
	if err != nil {
		t.Fatalf("dial %s in %s: %v", target, box.ID, err)
	}
	go func() {
		defer close(c.ended)
		exit, err := p.Wait()
		c.reset = err == nil && exit.Code == exitReset
		theirs.Close()
	}()
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(40 * time.Second))
	line, err := c.in.ReadString('\n')
	if err != nil {
		t.Fatalf("dial %s in %s: %v", target, box.ID, err)
	}
	return c, strings.TrimSpace(line)
}

// mustDial is dial for a connection that has to be made. Behind the doors that
// is every one: what is refused is refused later, with a reason.
func mustDial(t *testing.T, box *harness.Box, target string) *inside {
	t.Helper()
	c, result := dial(t, box, target)
	if result != "connected" {
		t.Fatalf("dial %s in %s: %s", target, box.ID, result)
	}
	return c
}

func (c *inside) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if errors.Is(err, io.EOF) {
		<-c.ended
		if c.reset {
			err = syscall.ECONNRESET
		}
	}
	return n, err
}

func (c *inside) Close() error {
	c.stop()
	err := c.Conn.Close()
	<-c.ended
	return err
}

// send writes raw bytes and returns all that comes back until the end.
func (c *inside) send(t *testing.T, raw string) (answer string, err error) {
	t.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(c)
	return string(text), err
}

// handshake speaks TLS through a connection and returns how that went. The
// server's certificate must be for the name that is asked for.
func handshake(t *testing.T, s *harness.Server, conn net.Conn, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	config.RootCAs = trusted(t, s)
	c := tls.Client(conn, config)
	return c, c.HandshakeContext(t.Context())
}

// request sends one HTTP/1.1 request and reads its answer.
func request(t *testing.T, conn net.Conn, in *bufio.Reader, raw string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	return answer, string(body)
}

// refusal is the body of the proxy's 403.
type refusal struct{ Error, Reason, Rule, Decision, Host string }

// expectRefused expects a 403 that says why, and the same in the audit log.
func expectRefused(t *testing.T, s *harness.Server, box *harness.Box, answer *http.Response, body, reason string) {
	t.Helper()
	var why refusal
	err := json.Unmarshal([]byte(body), &why)
	if answer.StatusCode != 403 || err != nil || !strings.Contains(why.Reason, reason) || why.Decision == "" {
		t.Errorf("answered %d %s (%v), want 403 and a reason like %q", answer.StatusCode, body, err, reason)
		return
	}
	awaitRecord(t, s, box, "decision "+why.Decision, func(r record) bool {
		return r.Decision == why.Decision && r.Verdict == "deny" && r.Reason == why.Reason
	})
}

// record is a line of the audit log, as far as tests look at it.
type record struct {
	Decision, Sandbox, Direction, Protocol, Address, Name, Verdict, Rule, Entry, Reason, Method, Path string
	Port                                                                                              uint16
	Generation, BytesUp, BytesDown                                                                    uint64
	Status                                                                                            int
	Intercepted                                                                                       bool
	Matched                                                                                           string
	Injected                                                                                          []string
}

// records reads the audit log of a sandbox; of all for nil.
func records(t *testing.T, s *harness.Server, box *harness.Box) (found []record) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.DataDir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if end := bytes.LastIndexByte(text, '\n'); end >= 0 {
		text = text[:end+1] // the last line may be half written
	}
	for line := range bytes.Lines(text) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("audit log: %s: %v", line, err)
		}
		if box == nil || r.Sandbox == box.ID {
			found = append(found, r)
		}
	}
	return found
}

// awaitRecord waits until the audit log has such a record.
func awaitRecord(t *testing.T, s *harness.Server, box *harness.Box, what string, is func(record) bool) (found record) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		all := records(t, s, box)
		for _, r := range all {
			if is(r) {
				return r
			}
		}
		if time.Now().After(deadline) {
			all = slices.DeleteFunc(all, func(r record) bool { return r.Direction == "in" })
			t.Errorf("the audit log has no record of %s; the latest are %+v", what, all[max(0, len(all)-5):])
			return record{}
		}
		<-time.After(20 * time.Millisecond)
	}
}

// lookup asks a DNS question from inside a sandbox.
func lookup(t *testing.T, box *harness.Box, proto, server, name string, kind uint16) *dns.Msg {
	t.Helper()
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	question.SetEdns0(1232, false)
	return ask(t, mustDial(t, box, proto+":"+server), question)
}

// ask sends a message over a connection of dial's, whose frames for datagrams
// are those of DNS over TCP.
func ask(t *testing.T, conn *inside, question *dns.Msg) *dns.Msg {
	t.Helper()
	co := &dns.Conn{Conn: conn}
	if err := co.WriteMsg(question); err != nil {
		t.Fatal(err)
	}
	reply, err := co.ReadMsg()
	if err != nil {
		t.Fatalf("ask %v: %v", question.Question, err)
	}
	if reply.Id != question.Id {
		t.Errorf("ask %v: the reply is to another question", question.Question)
	}
	return reply
}

// addresses are those in a reply, as text.
func addresses(reply *dns.Msg) (found []string) {
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			found = append(found, rr.A.String())
		case *dns.AAAA:
			found = append(found, rr.AAAA.String())
		}
	}
	return found
}

// queried counts the questions for a name, or for names below it, that have
// left the node.
func queried(s *harness.Server, name string) (n int) {
	for _, q := range s.Lab.Queries() {
		if asked := strings.TrimSuffix(q.Name, "."); asked == name || strings.HasSuffix(asked, "."+name) {
			n++
		}
	}
	return n
}

// reached counts the packets that have got to an address of the internet.
func reached(s *harness.Server, addr string) (n int) {
	for _, p := range s.Lab.Packets() {
		if p.To.String() == addr {
			n++
		}
	}
	return n
}

// get is a request for a path of a host.
func get(host, path string) string {
	return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host)
}
