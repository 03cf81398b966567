package control

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestMetricsOfOne(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	r.engine.samples[id] = []sandbox.Sample{{
		At: epoch.Add(1234567), CPUs: 2, CPUUsedPct: 12.5, MemUsed: 1, MemTotal: 2, MemCache: 3, DiskUsed: 4, DiskTotal: 5 << 40,
	}}
	const want = `[{"timestamp":"2026-11-21T10:00:00.001234Z","timestampUnix":1795255200,"cpuCount":2,"cpuUsedPct":12.5,` +
		`"memUsed":1,"memTotal":2,"memCache":3,"diskUsed":4,"diskTotal":5497558138880}]`
	path := "/sandboxes/" + id + "/metrics"
	if got := r.send(keyA, "GET", path, "").want(http.StatusOK).body; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	r.send(keyA, "GET", path+"?start=100&end=200", "").want(http.StatusOK)
	r.send(keyA, "GET", path+"?start=100", "").want(http.StatusOK)
	spans := [][2]time.Time{{}, {time.Unix(100, 0), time.Unix(200, 999999999)}, {time.Unix(100, 0), {}}}
	for i, want := range spans {
		if got := r.engine.spans[i]; !got[0].Equal(want[0]) || !got[1].Equal(want[1]) {
			t.Errorf("request %d asked the engine for %v, want %v", i, got, want)
		}
	}
	r.engine.samples[id] = nil
	if got := r.send(keyA, "GET", path, "").want(http.StatusOK).body; got != "[]" {
		t.Errorf("no readings: got %s", got)
	}
	for query, text := range map[string]string{
		"start=2&end=1":             "start must not be after end",
		"start=now":                 "start must be a time in unix seconds",
		"end=-5":                    "end must be a time in unix seconds",
		"start=9223372036854775807": "start",
		"start=1&start=2":           "start was given 2 times",
	} {
		r.send(keyA, "GET", path+"?"+query, "").want(http.StatusBadRequest, text)
	}
}

func TestMetricsOfMany(t *testing.T) {
	r := newRig(t)
	one, silent, theirs := r.create(keyA, "").SandboxID, r.create(keyA, "").SandboxID, r.create(keyB, "").SandboxID
	for _, id := range []string{one, theirs} {
		r.engine.samples[id] = []sandbox.Sample{{At: epoch, CPUs: 1}, {At: epoch.Add(time.Second), CPUs: 2}}
	}
	query := "/sandboxes/metrics?sandbox_ids=" + strings.Join([]string{one, silent, theirs, "iunknown"}, ",")
	got := decodeAs[api.SandboxesMetrics](r.send(keyA, "GET", query, "").want(http.StatusOK))
	if len(got.Sandboxes) != 1 || got.Sandboxes[one].CPUCount != 2 {
		t.Errorf("got %+v, want the newest reading of %s only", got, one)
	}
	var many []string
	for i := range 101 {
		many = append(many, fmt.Sprintf("i%d", i))
	}
	r.send(keyA, "GET", "/sandboxes/metrics?sandbox_ids="+strings.Join(many[:100], ","), "").want(http.StatusOK)
	for query, text := range map[string]string{
		"":                                       "sandbox_ids is required",
		"sandbox_ids=":                           "sandbox_ids is required",
		"sandbox_ids=" + strings.Join(many, ","): "at most 100",
		"sandbox_ids=i1,i1":                      "i1 was given twice",
		"sandbox_ids=i1,,i2":                     `invalid sandbox ID ""`,
		"sandbox_ids=i1,../x":                    `invalid sandbox ID "../x"`,
	} {
		r.send(keyA, "GET", "/sandboxes/metrics?"+query, "").want(http.StatusBadRequest, text)
	}
}
