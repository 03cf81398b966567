package e2e

import (
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// TestTeamsDoNotSeeEachOther tries every door of a sandbox with the key of
// another team, and expects what a sandbox that does not exist would answer.
func TestTeamsDoNotSeeEachOther(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{Metadata: map[string]string{"secret": "of the first team"}})
	stranger, err := s.Operator().CreateKey(t.Context(), api.NewKey{Name: "stranger"})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(key, method, path, body string) harness.Answer {
		return s.RequestAs(t, key, method, path, strings.NewReader(body))
	}
	for _, door := range []struct{ method, path, body string }{
		{"GET", "/sandboxes/ID", ""},
		{"DELETE", "/sandboxes/ID", ""},
		{"POST", "/sandboxes/ID/timeout", `{"timeout":1}`},
		{"POST", "/sandboxes/ID/refreshes", `{"duration":60}`},
		{"POST", "/sandboxes/ID/connect", `{"timeout":60}`},
		{"POST", "/v2/sandboxes/ID/connect", `{}`},
		{"PUT", "/sandboxes/ID/network", `{"denyOut":["0.0.0.0/0"]}`},
		{"POST", "/sandboxes/ID/traffic-token", ""},
		{"GET", "/sandboxes/ID/metrics", ""},
	} {
		const nobody = "i00000000000000000000"
		got := ask(stranger.Secret, door.method, strings.Replace(door.path, "ID", box.ID, 1), door.body)
		want := ask(stranger.Secret, door.method, strings.Replace(door.path, "ID", nobody, 1), door.body)
		if got.Status != 404 || got.Status != want.Status || strings.ReplaceAll(got.Body, box.ID, nobody) != want.Body {
			t.Errorf("%s %s: %d %s, want what a missing one answers: %d %s", door.method, door.path, got.Status, got.Body, want.Status, want.Body)
		}
		if a := ask("", door.method, strings.Replace(door.path, "ID", box.ID, 1), door.body); a.Status != 401 {
			t.Errorf("%s %s without a key: %d %s, want 401", door.method, door.path, a.Status, a.Body)
		}
	}
	for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
		if a := ask(stranger.Secret, "GET", path, ""); a.Status != 200 || strings.TrimSpace(a.Body) != "[]" {
			t.Errorf("GET %s as a stranger: %d %s, want an empty list", path, a.Status, a.Body)
		}
		if a := ask(s.Key, "GET", path, ""); a.Status != 200 || !strings.Contains(a.Body, box.ID) {
			t.Errorf("GET %s as its owner: %d %s", path, a.Status, a.Body)
		}
	}
	if a := ask(stranger.Secret, "GET", "/sandboxes/metrics?sandbox_ids="+box.ID, ""); strings.Contains(a.Body, "cpuCount") {
		t.Errorf("a stranger gets metrics: %d %s", a.Status, a.Body)
	}
	if got := box.MustRun(t, "echo alive"); got != "alive" {
		t.Errorf("after all that the sandbox says %q", got)
	}
}

func TestKeysComeAndGo(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	operator := s.Operator()
	made, err := operator.CreateKey(t.Context(), api.NewKey{Name: "second", Team: api.DefaultTeam})
	if err != nil {
		t.Fatal(err)
	}
	box := s.Create(t, api.NewSandbox{})
	if _, err := s.ClientOf(made.Secret).Sandbox(t.Context(), box.ID); err != nil {
		t.Errorf("a second key of the same team: %v", err)
	}
	s.Kill()
	s.Start()
	if _, err := s.ClientOf(made.Secret).Sandbox(t.Context(), box.ID); err != nil {
		t.Errorf("the second key after a restart: %v", err)
	}
	if err := s.Operator().DeleteKey(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ClientOf(made.Secret).Sandbox(t.Context(), box.ID); harness.Status(err) != 401 {
		t.Errorf("a revoked key: %v, want 401", err)
	}
	for name, key := range map[string]string{
		"none": "", "unknown": "e2b_0000000000000000000000000000000000000000", "not of the form": "sk-1", "upper case": strings.ToUpper(s.Key),
	} {
		if a := s.RequestAs(t, key, "GET", "/v2/sandboxes", nil); a.Status != 401 {
			t.Errorf("key %s: %d %s, want 401", name, a.Status, a.Body)
		}
	}
	out := s.Output()
	if strings.Count(out, s.Key) != 1 || strings.Contains(out, made.Secret) {
		t.Errorf("keys in the server's output, want the first one once and no other:\n%s", out)
	}
}

// TestGuestDaemonWantsItsToken goes to a sandbox's daemon by all ways there
// are, without the token that create returned.
func TestGuestDaemonWantsItsToken(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{})
	if box.Made.EnvdAccessToken == "" {
		t.Fatal("create returned no token")
	}
	without := box.Made
	without.EnvdAccessToken = ""
	wrong := box.Made
	wrong.EnvdAccessToken = strings.Repeat("0", len(box.Made.EnvdAccessToken))
	for name, made := range map[string]api.Sandbox{"no token": without, "a wrong token": wrong} {
		c := s.Client().Open(made)
		_, err := c.Commands.Run(t.Context(), client.Command{Args: []string{"true"}})
		if harness.Status(err) != 401 {
			t.Errorf("run with %s: %v, want 401", name, err)
		}
		if _, err := c.Files.Read(t.Context(), "/etc/hostname"); harness.Status(err) != 401 {
			t.Errorf("read with %s: %v, want 401", name, err)
		}
	}
	// The control paths of the daemon are nobody's business, token or not.
	for _, path := range []string{"/init", "//init", "/x/../init", "/%69nit"} {
		url := "https://49983-" + box.ID + "." + lab.Domain + path
		if a := s.RequestAs(t, "", "POST", url, strings.NewReader("{}")); a.Status != 404 {
			t.Errorf("POST %s: %d %s, want 404", path, a.Status, a.Body)
		}
	}
	// A sandbox cannot reach its neighbour's daemon, or its own from outside.
	if got := box.MustRun(t, `curl -s -m 5 -o /dev/null -w '%{http_code}' http://127.0.0.1:49983/health`); got != "204" {
		t.Errorf("the daemon's own health: %s, want 204", got)
	}
}
