package e2e

import (
	"slices"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// TestDirectFlowsAreRecorded: what the kernel decides about by itself is in the
// sandbox's log as well, refused flows at once and allowed ones when they are
// over, with the reason and with what they carried.
func TestDirectFlowsAreRecorded(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("1.1.1.1", "example.com"))
	probe(t, box, targets("8.8.8.8", "2001:4860:4860::8888", "10.0.0.1", "1.1.1.1")...)
	want := []api.FlowRecord{
		{Protocol: "tcp", Address: "8.8.8.8", Port: 7, Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0"},
		{Protocol: "udp", Address: "8.8.8.8", Port: 7, Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0"},
		{Protocol: "icmp", Address: "8.8.8.8", Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0"},
		{Protocol: "tcp", Address: "2001:4860:4860::8888", Port: 7, Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0"},
		{Protocol: "tcp", Address: "10.0.0.1", Port: 7, Verdict: "deny", Rule: "never"},
		{Protocol: "tcp", Address: "1.1.1.1", Port: 7, Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.1"},
	}
	var recorded []api.FlowRecord
	s.Wait("all flows are recorded", func() bool {
		page, err := s.Client().Flows(t.Context(), box.ID, client.FlowFilter{Direction: "out"})
		if err != nil {
			t.Fatal(err)
		}
		recorded = page.Flows
		return !slices.ContainsFunc(want, func(w api.FlowRecord) bool {
			return !slices.ContainsFunc(recorded, func(f api.FlowRecord) bool {
				return f.Protocol == w.Protocol && f.Address == w.Address && f.Port == w.Port && f.Verdict == w.Verdict && f.Rule == w.Rule && f.Entry == w.Entry
			})
		})
	})
	for _, f := range recorded {
		if f.Reason == "" || f.Generation != 1 {
			t.Errorf("record %+v", f)
		}
		if f.Verdict == "allow" && (f.BytesUp < 50 || f.BytesDown < 50) {
			t.Errorf("an allowed flow carried %d and %d bytes: %+v", f.BytesUp, f.BytesDown, f)
		}
	}
}
