package e2e

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// allowFor grants entries or fails the test.
func allowFor(t *testing.T, s *harness.Server, box *harness.Box, length time.Duration, entries ...string) api.Grant {
	t.Helper()
	grant, err := s.Client().Grant(t.Context(), box.ID, entries, length)
	if err != nil {
		t.Fatal(err)
	}
	return grant
}

// TestGrant lets a sandbox reach a name and an address for some seconds. Then
// both are as unreachable as before, and live connections of every kind are
// cut; what the document allows lives on.
func TestGrant(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com"))
	visits{"https://google.com/": alert}.check(t, box)
	kept := holdAll(t, s, box, "example.com", "93.184.216.34")

	grant := allowFor(t, s, box, 20*time.Second, "google.com", "1.1.1.1")
	visits{"https://google.com/": "this is google.com"}.check(t, box)
	expect(t, s, box, []string{"1.1.1.1"}, nil)
	granted := append(holdAll(t, s, box, "google.com", "142.250.74.46"), held{"direct TCP", beatEcho(mustDial(t, box, "tcp:1.1.1.1:7"))})
	expectBeats(t, "during the grant", granted)

	state, err := s.Client().Network(t.Context(), box.ID)
	if err != nil || len(state.Grants) != 1 || !slices.Equal(state.Effective.AllowOut, []string{"example.com", "google.com", "1.1.1.1"}) ||
		!slices.Equal(state.Network.AllowOut, []string{"example.com"}) {
		t.Errorf("in force %+v, %v", state, err)
	}
	why, err := s.Client().Explain(t.Context(), box.ID, api.Question{URL: "https://google.com"})
	if err != nil || why.Verdict != "allow" || why.Grant == nil || why.Grant.ID != grant.ID {
		t.Errorf("explained as %+v, %v", why, err)
	}

	s.Wait("the grant is over", func() bool {
		grants, err := s.Client().Grants(t.Context(), box.ID)
		return err == nil && len(grants) == 0 && time.Now().After(grant.ExpiresAt)
	})
	s.Wait("what follows from it is in force", func() bool {
		state, err := s.Client().Network(t.Context(), box.ID)
		return err == nil && state.Generation == 3
	})
	expectCut(t, "after the grant", granted)
	expectBeats(t, "after the grant", kept)
	expect(t, s, box, nil, []string{"1.1.1.1"})
	visits{"https://google.com/": alert, "https://example.com/": "this is example.com"}.check(t, box)
}

func TestRevokeCuts(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com"))
	grant := allowFor(t, s, box, time.Hour, "google.com", "1.1.1.1")
	granted := append(holdAll(t, s, box, "google.com", "142.250.74.46"), held{"direct TCP", beatEcho(mustDial(t, box, "tcp:1.1.1.1:7"))})
	expectBeats(t, "during the grant", granted)
	receipt, err := s.Client().Revoke(t.Context(), box.ID, grant.ID)
	if err != nil || receipt.Generation != 3 || receipt.FlowsCut != len(granted) {
		t.Errorf("%+v, %v; %d flows were live", receipt, err, len(granted))
	}
	expectCut(t, "after the grant", granted)
	// A name without a denial of all else is refused, as in a document.
	open := s.Create(t, api.NewSandbox{})
	if _, err := s.Client().Grant(t.Context(), open.ID, []string{"google.com"}, time.Hour); harness.Status(err) != 400 {
		t.Errorf("a name is granted to a sandbox that is open: %v", err)
	}
}

// TestGrantsAndRestarts: a grant goes on under the next server and ends on
// time; one that ended while none ran is not in force under the next.
func TestGrantsAndRestarts(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("1.1.1.1"))
	allowFor(t, s, box, time.Hour, "93.184.216.34")
	brief := allowFor(t, s, box, 2*time.Second, "8.8.8.8")
	s.Kill()
	<-time.After(time.Until(brief.ExpiresAt))
	s.Start()
	expect(t, s, box, []string{"1.1.1.1", "93.184.216.34"}, []string{"8.8.8.8"})
	state, err := s.Client().Network(t.Context(), box.ID)
	if err != nil || len(state.Grants) != 1 || state.Generation != 4 {
		t.Errorf("after the restart: %+v, %v", state, err)
	}
	soon := allowFor(t, s, box, 3*time.Second, "8.8.8.8")
	s.Stop()
	s.Start()
	s.Wait("the grant is over", func() bool {
		state, err := s.Client().Network(t.Context(), box.ID)
		return err == nil && state.Generation == 6 && time.Now().After(soon.ExpiresAt)
	})
	expect(t, s, box, []string{"93.184.216.34"}, []string{"8.8.8.8"})
	direct := []held{{"direct TCP", beatEcho(mustDial(t, box, "tcp:93.184.216.34:7"))}}
	expectBeats(t, "under the grant", direct)
	// A document as E2B's clients send it is all there is.
	if err := s.Client().SetNetwork(t.Context(), box.ID, api.NetworkUpdate{Network: *network([]string{"1.1.1.1"}, everything)}); err != nil {
		t.Fatal(err)
	}
	expectCut(t, "after the update", direct)
	expect(t, s, box, []string{"1.1.1.1"}, []string{"93.184.216.34"})
}

// TestEditsAtOnce lets many add entries at the same time and expects all of
// them to be in force; who insists on what he has read is told otherwise.
func TestEditsAtOnce(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("1.1.1.1"))
	var editors sync.WaitGroup
	added := []string{"8.8.8.8", "8.8.4.4", "93.184.216.34", "93.184.216.35"}
	for _, entry := range added {
		editors.Go(func() {
			if _, _, err := s.Client().EditNetwork(t.Context(), box.ID, api.NetworkEdit{Allow: []string{entry}}); err != nil {
				t.Error(err)
			}
		})
	}
	editors.Wait()
	expect(t, s, box, append(added, "1.1.1.1"), nil)
	state, err := s.Client().Network(t.Context(), box.ID)
	if err != nil {
		t.Fatal(err)
	}
	direct := []held{{"direct TCP", beatEcho(mustDial(t, box, "tcp:8.8.8.8:7"))}}
	if _, receipt, err := s.Client().EditNetwork(t.Context(), box.ID, api.NetworkEdit{Deny: []string{"8.8.8.8"}}); err != nil || receipt.FlowsCut == 0 {
		t.Errorf("%+v, %v", receipt, err)
	}
	expectCut(t, "after the edit", direct)
	stale := client.NetworkOptions{IfGeneration: state.Generation}
	if _, err := s.Client().SetNetworkIf(t.Context(), box.ID, api.NetworkUpdate{}, stale); harness.Status(err) != 412 {
		t.Errorf("an update for an old generation: %v", err)
	}
	expect(t, s, box, []string{"8.8.4.4"}, []string{"8.8.8.8"})
}
