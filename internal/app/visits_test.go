package app

import (
	"net/netip"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/policy"
)

func TestVisitsAreRecorded(t *testing.T) {
	log, err := audit.New(audit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	v := visits{log}
	client, began := netip.MustParseAddr("192.0.2.7"), time.Unix(1_800_000_000, 0)
	for _, r := range []ingress.Record{
		{Verdict: ingress.Allowed, Reason: ingress.ByToken, Status: 200, BytesIn: 1, BytesOut: 2},
		{Verdict: ingress.Denied, Reason: "traffic_token_missing", Status: 403},
		{Verdict: ingress.Answered, Reason: ingress.LinkFollowed, Status: 303},
		{Verdict: ingress.Allowed, Reason: ingress.ByEverybody, Failure: "port_closed", Status: 502},
		{}, // nothing is known: nothing was allowed
	} {
		r.Time, r.Duration, r.Client, r.Sandbox, r.Port, r.Method, r.Path = began, time.Second, client, "iabc", 8080, "GET", "/a"
		v.Finished(r)
	}
	records := log.Query(audit.Filter{Sandbox: "iabc"}).Records
	for i, want := range []struct {
		verdict      policy.Verdict
		rule, reason string
		status       int
	}{
		{policy.Allow, "traffic_token", "the request has the traffic token", 200},
		{policy.Deny, "traffic_token_missing", "the port is private and the request has no traffic token", 403},
		{policy.Allow, "link_followed", "a link was exchanged for a cookie", 303},
		{policy.Allow, "public", "the port is open to everybody; it ended with port_closed", 502},
		{policy.Deny, "", "", 0},
	} {
		r := records[i]
		if r.Verdict != want.verdict || r.Rule != want.rule || r.Reason != want.reason || r.Status != want.status {
			t.Errorf("record %d: %+v, want %+v", i, r, want)
		}
		if r.Direction != audit.In || r.Protocol != audit.HTTP || r.Dst != netip.AddrPortFrom(client, 8080) ||
			!r.Time.Equal(began) || r.Duration != time.Second || r.Method != "GET" || r.Path != "/a" {
			t.Errorf("record %d: %+v", i, r)
		}
	}
	if up, down := records[0].BytesUp, records[0].BytesDown; up != 1 || down != 2 {
		t.Errorf("bytes %d up, %d down", up, down)
	}
}
