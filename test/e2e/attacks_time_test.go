package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/test/harness"
)

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

// load keeps the proxy busy: downloads that it carries, and many short
// connections.
const load = `for n in 1 2; do
  (while :; do curl -s -o /dev/null --resolve example.com:443:93.184.216.34 https://example.com/bytes/50000000 || sleep 0.1; done) &
  (while :; do curl -s -o /dev/null --resolve example.com:443:93.184.216.34 https://example.com/ || sleep 0.1; done) &
done
wait
`

// TestAttack29ServerKilled: with the server, killed under load, its proxy dies.
// What it carried is cut, new connections to names are refused at once, direct
// ones go on, nothing opens and nothing hangs. The next server picks up where the
// last one was, and the audit log says that there was a time without.
func TestAttack29ServerKilled(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com", "1.1.1.1"))
	busy := s.Create(t, only("example.com"))
	for b, script := range map[*harness.Box]string{box: watch, busy: load} {
		if err := b.Files.Write(t.Context(), "script.sh", strings.NewReader(script)); err != nil {
			t.Fatal(err)
		}
		b.Start(t, "sh script.sh")
	}
	// Nothing can be asked of a sandbox while there is no server: it notes by
	// itself what it sees.
	seen := func() string { return box.MustRun(t, "cat seen || true") }
	s.Wait("the sandbox is at work", func() bool { return strings.Contains(seen(), "direct 0 name 0") })
	s.Wait("the proxy is under load", func() bool { return asked(s, "/bytes/50000000") > 2 })
	s.Kill()
	direct, web := asked(s, "/direct"), asked(s, "/")
	s.Wait("direct connections go on", func() bool { return asked(s, "/direct") > direct+3 })
	if got := asked(s, "/"); got != web {
		t.Errorf("%d requests to a name were carried by nobody", got-web)
	}
	s.Start()
	s.Wait("names are reached again", func() bool {
		lines := strings.Split(strings.TrimSpace(seen()), "\n")
		return strings.Contains(lines[len(lines)-1], "name 0") && strings.Contains(seen(), "name 7")
	})
	for line := range strings.Lines(seen()) {
		// curl's 7 is a connection that is refused at once; 28 would be silence.
		if !strings.Contains(line, "direct 0") || strings.Contains(line, " 28 ") || strings.Contains(line, "evil 0") {
			t.Errorf("around the kill the sandbox saw %q", line)
		}
	}
	if n := reached(s, attacker); n != 0 {
		t.Errorf("%d packets got to the attacker", n)
	}
	awaitRecord(t, s, box, "the time without a server", func(r record) bool {
		return r.Rule == "lost" && strings.Contains(r.Reason, "no server ran for a time") && strings.Contains(r.Reason, "connections that the proxy carried were cut")
	})
}

// TestAttacksInTime: attacks 28, 31 and 32, which look for a moment without a
// policy, or with another one's.
func TestAttacksInTime(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com"))
	tryAll(t, s, box, []attack{
		{"TestAttack28FirstMoments", attack28},
		{"TestAttack31SlotOfAnEndedSandbox", attack31},
		{"TestAttack32ConcurrentUpdates", attack32},
	})
}

// The first thing that a new sandbox does is to try what it may not, several
// sandboxes at a time.
func attack28(t *testing.T, s *harness.Server, _ *harness.Box) {
	var running sync.WaitGroup
	for range 3 {
		running.Go(func() {
			for range 4 {
				b := s.Create(t, only("example.com"))
				got := b.Run(t, "curl -sf -m 3 http://"+attacker+"/ || curl -sfk -m 3 https://"+attacker+"/ || curl -sf -m 3 http://evil.example/ || curl -sS -m 5 http://example.com/")
				if got.Code != 0 || !strings.HasPrefix(got.Stdout, "this is example.com") {
					t.Errorf("first of all: exit %d, %s%s", got.Code, got.Stdout, got.Stderr)
				}
				if err := s.Client().Kill(t.Context(), b.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
}

// What an ended sandbox had open ends with it.
func attack31(t *testing.T, s *harness.Server, _ *harness.Box) {
	ended := withProber(t, s, only("example.com"))
	all := holdAll(t, s, ended, "example.com", "93.184.216.34")
	expectBeats(t, "before the kill", all)
	if err := s.Client().Kill(t.Context(), ended.ID); err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"tls", "http"} {
		awaitRecord(t, s, ended, "the end of a "+protocol+" flow", func(r record) bool {
			return r.Protocol == protocol && r.Rule == "ended" && r.Verdict == "deny" && r.Name == "example.com"
		})
	}
}

// Of many updates at once one is the last, and it is what is stored, shown and
// in force.
func attack32(t *testing.T, s *harness.Server, box *harness.Box) {
	const updates = 24
	hosts := []string{"example.com", "google.com", "api.example.com"}
	var running sync.WaitGroup
	for i := range updates {
		running.Go(func() {
			body := fmt.Sprintf(`{"denyOut":["0.0.0.0/0"],"allowOut":[%q]}`, hosts[i%len(hosts)])
			if a := s.Request(t, "PUT", "/sandboxes/"+box.ID+"/network", body); a.Status != 204 {
				t.Errorf("update: %d %s", a.Status, a.Body)
			}
		})
	}
	running.Wait()
	detail, err := s.Client().Sandbox(t.Context(), box.ID)
	if err != nil || detail.Network == nil || len(detail.Network.AllowOut) != 1 {
		t.Fatalf("shown: %+v, %v", detail.Network, err)
	}
	expected := visits{}
	for _, host := range hosts {
		expected["https://"+host+"/"] = alert
		if host == detail.Network.AllowOut[0] {
			expected["https://"+host+"/"] = "this is " + host
		}
	}
	expected.check(t, box)
	answer := s.Request(t, "PUT", "/sandboxes/"+box.ID+"/network", `{"denyOut":["0.0.0.0/0"],"allowOut":["example.com"]}`)
	if got := answer.Header.Get(api.HeaderNetworkGeneration); got != fmt.Sprint(updates+2) {
		t.Errorf("%d updates and one more make generation %s", updates, got)
	}

	// Updates while the sandbox is killed come to nothing, and nobody inherits them.
	doomed := s.Create(t, only("example.com"))
	stop := make(chan struct{})
	running.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if a := s.Request(t, "PUT", "/sandboxes/"+doomed.ID+"/network", `{}`); a.Status != 204 && a.Status != 404 && a.Status != 409 {
				t.Errorf("update during a kill: %d %s", a.Status, a.Body)
			}
		}
	})
	<-time.After(50 * time.Millisecond)
	if err := s.Client().Kill(t.Context(), doomed.ID); err != nil {
		t.Error(err)
	}
	close(stop)
	running.Wait()
	if a := s.Request(t, "PUT", "/sandboxes/"+doomed.ID+"/network", `{}`); a.Status != 404 {
		t.Errorf("update after the kill: %d %s", a.Status, a.Body)
	}
}
