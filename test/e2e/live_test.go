package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/test/harness"
)

// held is a connection from a sandbox that stays busy.
type held struct {
	what string
	// beat sends something and waits for the answer to it.
	beat func() error
}

// holdAll opens connections of every kind to a host: over TLS and over HTTP,
// one of them a WebSocket, all carried by the proxy unless the policy allows
// the address.
func holdAll(t *testing.T, s *harness.Server, box *harness.Box, host, addr string) []held {
	t.Helper()
	secure, err := handshake(t, s, mustDial(t, box, "tcp:"+addr+":443"), &tls.Config{ServerName: host})
	if err != nil {
		t.Fatal(err)
	}
	plain := mustDial(t, box, "tcp:"+addr+":80")
	return []held{
		{"TLS to " + host, beatHTTP(secure, host)},
		{"HTTP to " + host, beatHTTP(plain, host)},
		{"WebSocket to " + host, beatSocket(t, "ws://"+host+"/ws", mustDial(t, box, "tcp:"+addr+":80"))},
	}
}

// beatHTTP reads an answer that goes on and on, an event at a time.
func beatHTTP(conn net.Conn, host string) func() error {
	in := bufio.NewReader(conn)
	_, failed := io.WriteString(conn, get(host, "/events/10000?every=20ms"))
	var events *bufio.Reader
	return func() error {
		if failed == nil && events == nil {
			var answer *http.Response
			if answer, failed = http.ReadResponse(in, nil); failed == nil {
				events = bufio.NewReader(answer.Body)
			}
		}
		began := time.Now()
		for failed == nil && time.Since(began) < 50*time.Millisecond { // what was on its way does not count
			_, failed = events.ReadString('\n')
		}
		return failed
	}
}

func beatSocket(t *testing.T, url string, conn net.Conn) func() error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	over := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	socket, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: over})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.CloseNow() })
	return func() error {
		if err := socket.Write(ctx, websocket.MessageText, []byte("beat")); err != nil {
			return err
		}
		_, _, err := socket.Read(ctx)
		return err
	}
}

// beatEcho is for the internet's echo servers, which are reached by address.
func beatEcho(conn net.Conn) func() error {
	return func() error {
		if _, err := io.WriteString(conn, "beat"); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 4))
		return err
	}
}

func expectBeats(t *testing.T, when string, all []held) {
	t.Helper()
	for _, h := range all {
		if err := h.beat(); err != nil {
			t.Errorf("%s: %s broke: %v", when, h.what, err)
		}
	}
}

func expectCut(t *testing.T, when string, all []held) {
	t.Helper()
	for _, h := range all {
		began := time.Now()
		if err := h.beat(); err == nil {
			t.Errorf("%s: %s lives on", when, h.what)
		} else if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: %s hung for %v: %v", when, h.what, took, err)
		}
	}
}

// TestUpdateOfNames changes names under connections of every kind. What the new
// policy denies is cut when the update is answered; all else lives on, whether
// the proxy carries it or not.
func TestUpdateOfNames(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com", "google.com", "1.1.1.1"))
	update := func(allow ...string) map[string]string {
		t.Helper()
		answer := s.Request(t, "PUT", "/sandboxes/"+box.ID+"/network", `{"denyOut":["0.0.0.0/0"],"allowOut":["`+strings.Join(allow, `","`)+`"]}`)
		if answer.Status != 204 {
			t.Fatalf("update: %d %s", answer.Status, answer.Body)
		}
		return map[string]string{"generation": answer.Header.Get(api.HeaderNetworkGeneration), "cut": answer.Header.Get(api.HeaderFlowsCut)}
	}
	kept := holdAll(t, s, box, "example.com", "93.184.216.34")
	direct := []held{{"direct TCP", beatEcho(mustDial(t, box, "tcp:1.1.1.1:7"))}}
	cut := holdAll(t, s, box, "google.com", "142.250.74.46")
	expectBeats(t, "before", append(append(kept, direct...), cut...))

	if got := update("example.com", "1.1.1.1"); got["generation"] != "2" || got["cut"] != "3" {
		t.Errorf("the receipt of the update is %v, want generation 2 and 3 flows cut", got)
	}
	expectCut(t, "a name less", cut)
	expectBeats(t, "a name less", append(kept, direct...))
	awaitRecord(t, s, box, "a flow that was cut", func(r record) bool {
		return r.Name == "google.com" && r.Verdict == "deny" && r.Generation == 2 && strings.HasPrefix(r.Reason, "cut by an update of the policy")
	})

	// The same name by another entry, and more addresses.
	if got := update("*", "1.1.1.1", "8.8.8.8"); got["cut"] != "0" {
		t.Errorf("a wider policy cut %v", got)
	}
	expectBeats(t, "wider", append(kept, direct...))

	// From names to everything: nothing is redirected any more, and what the
	// proxy carries goes on.
	if answer := s.Request(t, "PUT", "/sandboxes/"+box.ID+"/network", `{}`); answer.Status != 204 || answer.Header.Get(api.HeaderFlowsCut) != "0" {
		t.Errorf("opening: %d, %s flows cut", answer.Status, answer.Header.Get(api.HeaderFlowsCut))
	}
	expectBeats(t, "open", append(kept, direct...))
	open := []held{{"direct TCP to evil.example", beatEcho(mustDial(t, box, "tcp:45.60.70.80:7"))}}
	expectBeats(t, "open", open)

	// And back: the direct connection to what no name allows goes, the others stay.
	if got := update("example.com", "1.1.1.1"); got["cut"] != "1" {
		t.Errorf("closing cut %v, want the direct connection", got)
	}
	expectBeats(t, "closed", append(kept, direct...))
	expectCut(t, "closed", open)

	update("8.8.8.8")
	expectCut(t, "no names", append(kept, direct...))
}

// TestServerIsKilled: with the server its proxy dies. What it carried is cut,
// new connections to names are refused at once, direct ones go on, and nothing
// opens; the next server picks up where the last one was.
func TestServerIsKilled(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com", "1.1.1.1"))
	visits{"https://example.com/": "this is example.com"}.check(t, box)
	// Nothing can be asked of the sandbox while there is no server: it notes by
	// itself what it sees.
	box.MustRun(t, "rm -f seen; cat > watch.sh <<'EOF'\n"+watch+"EOF\n")
	box.Start(t, "sh watch.sh")
	s.Wait("the sandbox is at work", func() bool { return strings.Contains(box.MustRun(t, "cat seen || true"), "direct 0 name 0") })
	s.Kill()
	direct := asked(s, "/direct")
	s.Wait("direct connections go on", func() bool { return asked(s, "/direct") > direct+3 })
	if n := reached(s, "45.60.70.80"); n != 0 {
		t.Errorf("%d packets to what is forbidden", n)
	}
	s.Start()
	s.Wait("names are reached again", func() bool {
		lines := strings.Split(box.MustRun(t, "cat seen || true"), "\n")
		return strings.Contains(lines[len(lines)-1], "name 0") && strings.Contains(box.MustRun(t, "cat seen || true"), "direct 0 name 7")
	})
	seen := box.MustRun(t, "cat seen || true")
	for line := range strings.Lines(seen) {
		// 0: answered, 7: refused at once, 6: the name could not be looked up;
		// 52 and 56 are cut in the middle. 28 would be silence.
		if strings.Contains(line, "direct 0") && !strings.Contains(line, " 28 ") && strings.Contains(line, "evil 0") == false {
			continue
		}
		t.Errorf("while the server was away: %q", line)
	}
	if n := reached(s, "45.60.70.80"); n != 0 {
		t.Errorf("%d packets to what is forbidden", n)
	}
	for _, r := range records(t, s, box) {
		if r.Name == "evil.example" && r.Verdict != "deny" {
			t.Errorf("recorded: %+v", r)
		}
	}
}

// watch tries, again and again, what is allowed by address, what is allowed by
// name (at an address, so that nobody needs to be asked for it), and what is
// not. It writes down curl's exit codes.
const watch = `while :; do
  curl -s -m 3 -o /dev/null http://1.1.1.1/direct; direct=$?
  curl -s -m 3 -o /dev/null --resolve example.com:80:93.184.216.34 http://example.com/; name=$?
  curl -sf -m 3 -o /dev/null --resolve evil.example:80:45.60.70.80 http://evil.example/; evil=$?
  echo "direct $direct name $name evil $evil ." >> seen
done
`
