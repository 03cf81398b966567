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

// TestAttack30TightenedPolicyOldConnection changes names under connections of every kind. What the new
// policy denies is cut when the update is answered; all else lives on, whether
// the proxy carries it or not.
func TestAttack30TightenedPolicyOldConnection(t *testing.T) {
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
