package control

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

func TestHealth(t *testing.T) {
	r := newRig(t)
	r.create(keyA, "")
	r.create(keyB, "")
	if got := r.send("", "GET", "/health", "").want(http.StatusOK).body; got != `{"status":"ok","sandboxes":2}` {
		t.Errorf("got %s", got)
	}
}

func TestGet(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"metadata":{"b":"2","a":"1"}`).SandboxID
	r.change(id, func(s *store.Sandbox) {
		s.StartedAt = time.Date(2026, 11, 21, 10, 0, 0, 123456789, time.UTC)
		s.EndAt = time.Date(2026, 11, 21, 10, 5, 0, 0, time.UTC)
	})
	want := fmt.Sprintf(`{"sandboxID":%q,"templateID":"t1","alias":"base","clientID":"6532622b","envdVersion":%q,"state":"running",`+
		`"startedAt":"2026-11-21T10:00:00.123456Z","endAt":"2026-11-21T10:05:00Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,`+
		`"metadata":{"a":"1","b":"2"},"domain":null,"allowInternetAccess":null,"lifecycle":{"onTimeout":"kill","autoResume":false}}`, id, api.GuestVersion)
	got := r.send(keyA, "GET", "/sandboxes/"+id, "").want(http.StatusOK)
	if got.body != want {
		t.Errorf("got  %s\nwant %s", got.body, want)
	}
	// The form of E2B's older clients.
	if legacy := r.send(keyA, "GET", "/sandboxes/"+id+"-6532622b", ""); legacy.body != want {
		t.Errorf("<id>-<clientID>: got %s", legacy.body)
	}
}

func TestSandboxIDs(t *testing.T) {
	r := newRig(t)
	for _, id := range []string{"ABC", "a_b", "a-b-c", "-a", "a-", "a--b", "a.b", "a%2Fb", "a%00", "ä", "-"} {
		r.send(keyA, "GET", "/sandboxes/"+id, "").want(http.StatusBadRequest, "Invalid sandbox ID")
	}
	for _, id := range []string{"nonexisting", "iaaaaaaaaaaaaaaaaaaaa", "x", strings.Repeat("a", 4000)} {
		r.send(keyA, "GET", "/sandboxes/"+id, "").want(http.StatusNotFound, `Sandbox "`+id+`" doesn't exist or you don't have access to it`)
	}
}

// perSandbox are the routes about one sandbox, with a body they accept.
var perSandbox = []struct{ method, suffix, body string }{
	{"GET", "", ""},
	{"DELETE", "", ""},
	{"POST", "/connect", `{"timeout":1}`},
	{"POST", "/timeout", `{"timeout":1}`},
	{"POST", "/refreshes", `{}`},
	{"PUT", "/network", `{}`},
	{"POST", "/network/explain", `{"address":"1.1.1.1"}`},
	{"POST", "/traffic-token", `{}`},
	{"GET", "/metrics", ""},
}

// TestTeamIsolation: another team's sandbox is answered exactly as one that
// does not exist.
func TestTeamIsolation(t *testing.T) {
	r := newRig(t)
	mine := r.create(keyA, private).SandboxID
	before := r.record(mine)
	const nobodys = "iaaaaaaaaaaaaaaaaaaaa"
	for _, route := range perSandbox {
		foreign := r.send(keyB, route.method, "/sandboxes/"+mine+route.suffix, route.body).want(http.StatusNotFound)
		unknown := r.send(keyB, route.method, "/sandboxes/"+nobodys+route.suffix, route.body).want(http.StatusNotFound)
		if strings.ReplaceAll(foreign.body, mine, nobodys) != unknown.body {
			t.Errorf("%s %s: foreign %s, unknown %s", route.method, route.suffix, foreign.body, unknown.body)
		}
	}
	if after := r.record(mine); !reflect.DeepEqual(after, before) {
		t.Error("another team changed the sandbox")
	}
	for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
		if got := r.send(keyB, "GET", path, "").want(http.StatusOK); got.body != "[]" {
			t.Errorf("%s shows another team %s", path, got.body)
		}
	}
	if got := r.send(keyB, "GET", "/sandboxes/metrics?sandbox_ids="+mine, "").want(http.StatusOK); got.body != `{"sandboxes":{}}` {
		t.Errorf("metrics show another team %s", got.body)
	}
}

// TestStates: only a running sandbox can be used; one that is being killed
// conflicts where E2B says so, and is gone for the rest.
func TestStates(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, private).SandboxID
	r.change(id, func(s *store.Sandbox) { s.State = sandbox.Stopping })
	for _, route := range perSandbox {
		status := http.StatusConflict
		if route.suffix == "" {
			status = http.StatusNotFound
		}
		r.send(keyA, route.method, "/sandboxes/"+id+route.suffix, route.body).want(status)
	}
	if got := r.send(keyA, "GET", "/v2/sandboxes", "").want(http.StatusOK); got.body != "[]" {
		t.Errorf("listed: %s", got.body)
	}
}

func TestKill(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	r.send(keyA, "DELETE", "/sandboxes/"+id, "").want(http.StatusNoContent)
	r.send(keyA, "DELETE", "/sandboxes/"+id, "").want(http.StatusNotFound)
}

// TestKillOutlivesTheClient: a client that hangs up does not stop a kill half
// way.
func TestKillOutlivesTheClient(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	killing, stopped := make(chan struct{}), make(chan error, 1)
	r.engine.hook = func(ctx context.Context) {
		close(killing)
		select {
		case <-ctx.Done(): // would stop it
		case <-time.After(200 * time.Millisecond): // long after the hang-up arrived
		}
		stopped <- ctx.Err()
	}
	ctx, hangUp := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, "DELETE", r.public.URL+"/sandboxes/"+id, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set(api.HeaderAPIKey, keyA)
	go func() {
		<-killing
		hangUp()
	}()
	if response, err := http.DefaultClient.Do(request); err == nil {
		t.Fatalf("the request was answered: %s", response.Status)
	}
	if err := <-stopped; err != nil {
		t.Errorf("the kill was told to stop: %v", err)
	}
}

func TestConnect(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Domain = "moat.test" })
	made := r.create(keyA, `"timeout":1000`)
	path := "/sandboxes/" + made.SandboxID + "/connect"
	end := r.record(made.SandboxID).EndAt

	// It never shortens, in both dialects, with any body that names no longer
	// time.
	for _, body := range []string{``, `{}`, `{"timeout":0}`, `{"timeout":999}`, `{"memory":false}`, `{"timeout":null}`} {
		for _, prefix := range []string{"", "/v2"} {
			connected := decodeAs[api.Sandbox](r.send(keyA, "POST", prefix+path, body).want(http.StatusOK))
			if connected.EnvdAccessToken != made.EnvdAccessToken || *connected.Domain != "moat.test" || connected.ClientID != api.ClientID {
				t.Errorf("%s%s %s: %+v", prefix, path, body, connected)
			}
			if got := r.record(made.SandboxID).EndAt; !got.Equal(end) {
				t.Errorf("%s: end moved from %v to %v", body, end, got)
			}
		}
	}
	r.send(keyA, "POST", path, `{"timeout":2000}`).want(http.StatusOK)
	if got := r.record(made.SandboxID).EndAt.Sub(end); got < 900*time.Second || got > 1100*time.Second {
		t.Errorf("connect extended by %v, want about 1000 s", got)
	}
	short := r.create(keyA, `"timeout":1`).SandboxID
	r.send(keyA, "POST", "/sandboxes/"+short+"/connect", `{}`).want(http.StatusOK)
	wantEnd(t, r, short, 300*time.Second)

	r.send(keyA, "POST", path, `{"timeout":-1}`).want(http.StatusBadRequest, "Timeout must not be negative, got -1")
	r.send(keyA, "POST", path, `{"timeout":86401}`).want(http.StatusBadRequest, "Timeout cannot be greater than 24 hours")
	r.send(keyA, "POST", path, `{"timeout":"x"}`).want(http.StatusBadRequest, `timeout must be a whole number, got "x"`)
}

// wantEnd checks when a sandbox ends, counted from now.
func wantEnd(t *testing.T, r *rig, id string, fromNow time.Duration) {
	t.Helper()
	if got := time.Until(r.record(id).EndAt); got > fromNow || got < fromNow-20*time.Second {
		t.Errorf("ends in %v, want %v", got, fromNow)
	}
}

func TestSetTimeout(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"timeout":1000`).SandboxID
	path := "/sandboxes/" + id + "/timeout"
	for _, seconds := range []int{500, 2000, 86400, 0} {
		r.send(keyA, "POST", path, fmt.Sprintf(`{"timeout":%d}`, seconds)).want(http.StatusNoContent)
		wantEnd(t, r, id, time.Duration(seconds)*time.Second)
	}
	for body, text := range map[string]string{
		``:                  "empty",
		`{}`:                "timeout is required",
		`{"timeout":null}`:  "timeout is required",
		`{"timeout":-1}`:    "must not be negative, got -1: every sandbox ends",
		`{"timeout":86401}`: "cannot be greater than 24 hours",
		`{"timeout":1e3}`:   "timeout must be a whole number, got 1e3",
	} {
		r.send(keyA, "POST", path, body).want(http.StatusBadRequest, text)
	}
	wantEnd(t, r, id, 0)
}

func TestRefresh(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"timeout":1`).SandboxID
	path := "/sandboxes/" + id + "/refreshes"
	for _, step := range []struct {
		body string
		end  time.Duration
	}{
		{``, 15 * time.Second},
		{`{}`, 15 * time.Second},
		{`{"duration":0}`, 15 * time.Second},
		{`{"duration":3600}`, time.Hour},
		{`{"duration":60}`, time.Hour}, // only extends
	} {
		r.send(keyA, "POST", path, step.body).want(http.StatusNoContent)
		wantEnd(t, r, id, step.end)
	}
	for _, body := range []string{`{"duration":-1}`, `{"duration":3601}`} {
		r.send(keyA, "POST", path, body).want(http.StatusBadRequest, "duration must be from 0 to 3600 seconds, got ")
	}
}

// TestShortMaxTimeout: defaults do not exceed what the operator allows.
func TestShortMaxTimeout(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxTimeout = 90 * time.Second })
	id := r.create(keyA, "").SandboxID
	wantEnd(t, r, id, 90*time.Second)
	r.send(keyA, "POST", "/sandboxes/"+id+"/refreshes", `{"duration":3600}`).want(http.StatusNoContent)
	wantEnd(t, r, id, 90*time.Second)
	r.send(keyA, "POST", "/sandboxes", `{"templateID":"base","timeout":91}`).want(http.StatusBadRequest, "Timeout cannot be greater than 90 seconds")
}

func TestNotYet(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	for _, route := range []string{
		"POST /sandboxes/%s/pause", "POST /sandboxes/%s/resume", "POST /sandboxes/%s/snapshots", "POST /sandboxes/%s/fork",
		"GET /sandboxes/%s/logs", "GET /v2/sandboxes/%s/logs",
	} {
		method, path, _ := strings.Cut(route, " ")
		r.send(keyA, method, fmt.Sprintf(path, id), "").want(http.StatusNotImplemented, "does not support")
		r.send("", method, fmt.Sprintf(path, id), "").want(http.StatusUnauthorized)
	}
	r.send(keyA, "GET", "/snapshots", "").want(http.StatusNotImplemented)
	r.send(keyA, "DELETE", "/templates/some%2Fsnapshot:tag", "").want(http.StatusNotFound, `"some/snapshot:tag"`)
}
