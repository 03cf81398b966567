package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/test/harness"
)

// beacon asks an allowed and a denied server, again and again.
const beacon = `while :; do
  curl -s -m 2 http://1.1.1.1/allowed > /dev/null && echo allowed >> beacons
  curl -s -m 2 http://8.8.8.8/denied > /dev/null && echo denied >> beacons
  sleep 0.05
done`

// TestAdoption ends the server in both ways. Meanwhile its sandbox goes on and
// stays confined; the next server adopts it as it is.
func TestAdoption(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			s := harness.Start(t, harness.Options{})
			box := withProber(t, s, api.NewSandbox{
				Network:  network([]string{"1.1.1.1", "2606:4700:4700::1111"}, everything),
				Timeout:  harness.Seconds(10 * time.Minute),
				Metadata: map[string]string{"k": "v"},
				EnvVars:  map[string]string{"FROM_CREATE": "kept"},
			})
			box.Start(t, beacon)
			s.Wait("the sandbox is at work", func() bool { return asked(s, "/allowed") > 0 })
			before, err := s.Client().Sandbox(t.Context(), box.ID)
			if err != nil {
				t.Fatal(err)
			}

			if signal == syscall.SIGKILL {
				s.Kill()
			} else {
				s.Stop()
			}
			count := asked(s, "/allowed")
			s.Wait("the sandbox goes on without a server", func() bool { return asked(s, "/allowed") > count+3 })
			s.Start()

			after, err := s.Client().Sandbox(t.Context(), box.ID)
			if err != nil {
				t.Fatal(err)
			}
			if !after.StartedAt.Equal(before.StartedAt) || !after.EndAt.Equal(before.EndAt) || after.Metadata["k"] != "v" {
				t.Errorf("adopted as %+v, was %+v", after, before)
			}
			count = asked(s, "/allowed")
			s.Wait("the sandbox goes on under the new server", func() bool { return asked(s, "/allowed") > count })
			if n := asked(s, "/denied"); n != 0 {
				t.Errorf("%d requests reached what the policy denies", n)
			}
			if got := box.MustRun(t, "echo $FROM_CREATE; grep -c denied beacons || true"); got != "kept\n0" {
				t.Errorf("inside the sandbox: %q", got)
			}
			expect(t, s, box, []string{"1.1.1.1", "2606:4700:4700::1111"}, []string{"8.8.8.8", "2001:4860:4860::8888"})
			if err := s.Client().SetNetwork(t.Context(), box.ID, api.NetworkUpdate{Network: *network([]string{"8.8.8.8"}, everything)}); err != nil {
				t.Fatal(err)
			}
			expect(t, s, box, []string{"8.8.8.8"}, []string{"1.1.1.1"})
			if err := s.Client().Kill(t.Context(), box.ID); err != nil {
				t.Error(err)
			}
			s.Stop()
			s.ExpectClean(t)
		})
	}
}

// asked counts the requests for a path that the internet has seen.
func asked(s *harness.Server, path string) (n int) {
	for _, r := range s.Lab.Requests() {
		if r.Path == path {
			n++
		}
	}
	return n
}

// TestTimeIsOverWhileNoServerRuns expects a sandbox whose time ran out without
// a server to be gone when one is back.
func TestTimeIsOverWhileNoServerRuns(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	short := s.Create(t, api.NewSandbox{Timeout: harness.Seconds(3 * time.Second)})
	long := s.Create(t, api.NewSandbox{})
	detail, err := s.Client().Sandbox(t.Context(), short.ID)
	if err != nil {
		t.Fatal(err)
	}
	s.Kill()
	<-time.After(time.Until(detail.EndAt))
	s.Start()
	s.Wait("the sandbox is gone", func() bool {
		_, err := s.Client().Sandbox(t.Context(), short.ID)
		return harness.Status(err) == 404
	})
	if got := long.MustRun(t, "echo alive"); got != "alive" {
		t.Errorf("the other sandbox says %q", got)
	}
}

// TestKillOnExit expects the sandboxes to go with the server that was told so.
func TestKillOnExit(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{"--kill-on-exit"}})
	box := s.Create(t, api.NewSandbox{})
	s.Stop()
	s.ExpectClean(t)
	s.Start()
	if _, err := s.Client().Sandbox(t.Context(), box.ID); harness.Status(err) != 404 {
		t.Errorf("the sandbox is still known: %v", err)
	}
}

// TestADeadSandboxIsNotAdopted kills a sandbox's processes while no server
// runs.
func TestADeadSandboxIsNotAdopted(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{"--pool", "0"}})
	box := s.Create(t, api.NewSandbox{})
	s.Kill()
	pids := []string{"-9"}
	for _, line := range s.Leftovers(t) {
		if fields := strings.Fields(line); fields[0] == "process" {
			pids = append(pids, fields[1])
		}
	}
	if len(pids) == 1 {
		t.Fatal("found no process of the sandbox")
	}
	// One may take others with it.
	if out, err := s.Lab.Node.Command(t.Context(), "/bin/kill", pids...).CombinedOutput(); err != nil {
		t.Logf("kill %v: %v %s", pids, err, out)
	}
	s.Start()
	if _, err := s.Client().Sandbox(t.Context(), box.ID); harness.Status(err) != 404 {
		t.Errorf("the dead sandbox is still known: %v", err)
	}
	again := s.Create(t, api.NewSandbox{})
	if got := again.MustRun(t, "echo alive"); got != "alive" {
		t.Errorf("a new sandbox says %q", got)
	}
}
