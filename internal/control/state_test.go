package control

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// sendIf is send with a condition.
func (r *rig) sendIf(match, method, path, body string) answer {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), method, r.public.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set(api.HeaderAPIKey, keyA)
	request.Header.Set("If-Match", match)
	return r.do(request)
}

func (r *rig) state(id string) api.NetworkState {
	r.t.Helper()
	return decodeAs[api.NetworkState](r.send(keyA, "GET", "/sandboxes/"+id+"/network", "").want(http.StatusOK))
}

func TestNetworkState(t *testing.T) {
	r := newRig(t)
	plain := r.create(keyA, "").SandboxID
	raw := r.send(keyA, "GET", "/sandboxes/"+plain+"/network", "").want(http.StatusOK)
	if want := `{"generation":1,"allowInternetAccess":null,"effective":{"allowOut":[],"denyOut":[],"default":"allow"},"grants":[],"warnings":[]}`; raw.body != want {
		t.Errorf("got  %s\nwant %s", raw.body, want)
	}
	if raw.header.Get("ETag") != `"1"` || raw.header.Get(api.HeaderNetworkGeneration) != "1" {
		t.Errorf("ETag %s", raw.header.Get("ETag"))
	}
	id := r.create(keyA, `"allow_internet_access":false,"network":{"allowOut":["*.github.io","1.1.1.1","1.1.1.0/24"],"denyOut":["1.1.1.7"],"allowPublicTraffic":false}`).SandboxID
	off := false
	now := time.Now().UTC().Truncate(time.Microsecond)
	grant := sandbox.Grant{ID: "g1", AllowOut: []string{"8.8.8.8"}, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	over := sandbox.Grant{ID: "g0", AllowOut: []string{"9.9.9.9"}, CreatedAt: now.Add(-time.Hour), ExpiresAt: now}
	r.change(id, func(s *store.Sandbox) { s.Grants = []sandbox.Grant{over, grant} })
	want := api.NetworkState{
		Generation:          1,
		Network:             &api.Network{AllowOut: []string{"*.github.io", "1.1.1.1", "1.1.1.0/24"}, DenyOut: []string{"1.1.1.7"}, AllowPublicTraffic: &off},
		AllowInternetAccess: &off,
		Effective: api.EffectiveNetwork{
			AllowOut: []string{"*.github.io", "1.1.1.1", "1.1.1.0/24", "8.8.8.8"}, DenyOut: []string{"1.1.1.7"}, Default: "deny",
		},
		Grants: []api.Grant{{ID: "g1", AllowOut: []string{"8.8.8.8"}, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}},
		Warnings: []api.NetworkWarning{
			{Field: "allowOut", Entry: "1.1.1.1", Text: "has no effect: 1.1.1.0/24 in allowOut covers it"},
			{Field: "denyOut", Entry: "1.1.1.7", Text: "has no effect: allowOut beats it with 1.1.1.0/24"},
			{Field: "allowOut", Entry: "*.github.io", Text: "covers names that anybody can get: github.io is shared hosting"},
		},
	}
	if got := r.state(id); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	explained := r.explain(id, `{"address":"8.8.8.8","port":53}`)
	if explained.Verdict != "allow" || explained.Grant == nil || explained.Grant.ID != "g1" {
		t.Errorf("what a grant allows is explained as %+v", explained)
	}
	if explained := r.explain(id, `{"address":"9.9.9.9","port":53}`); explained.Verdict != "deny" {
		t.Errorf("what a grant allowed that is over is explained as %+v", explained)
	}
	r.send(keyB, "GET", "/sandboxes/"+id+"/network", "").want(http.StatusNotFound)
}

func TestUpdateNetworkIfMatch(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	path := "/sandboxes/" + id + "/network"
	first := r.sendIf(`"1"`, "PUT", path, `{"denyOut":["1.1.1.1"]}`).want(http.StatusNoContent)
	if got := first.header.Get("ETag"); got != `"2"` {
		t.Errorf("ETag %s after the update", got)
	}
	r.sendIf(`"1"`, "PUT", path, `{"denyOut":["2.2.2.2"]}`).want(http.StatusPreconditionFailed, "changed meanwhile")
	r.sendIf(`"1"`, "PATCH", path, `{"deny":["2.2.2.2"]}`).want(http.StatusPreconditionFailed, "changed meanwhile")
	if record := r.record(id); record.Generation != 2 || !slices.Equal(record.Network.DenyOut, []string{"1.1.1.1"}) {
		t.Errorf("after the refused updates: %+v", record.Network)
	}
	r.sendIf(`*`, "PUT", path, `{}`).want(http.StatusNoContent)
	r.sendIf(`3`, "PATCH", path, `{"deny":["2.2.2.2"]}`).want(http.StatusOK)
	for _, match := range []string{`W/"4"`, `"x"`, `"0"`, `"4`, `"4", "5"`} {
		r.sendIf(match, "PUT", path, `{}`).want(http.StatusBadRequest, "If-Match must be the ETag")
	}
}

// E2B's clients know no grants: what they send is all there is.
func TestUpdateNetworkEndsGrants(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"allow_internet_access":false`).SandboxID
	path := "/sandboxes/" + id + "/network"
	grant := func() {
		r.send(keyA, "POST", path+"/grants", `{"allowOut":["1.1.1.1"],"seconds":60}`).want(http.StatusCreated)
	}
	grant()
	r.send(keyA, "PUT", path+"?grants=keep", `{"denyOut":["0.0.0.0/0"]}`).want(http.StatusNoContent)
	if state := r.state(id); len(state.Grants) != 1 || !slices.Contains(state.Effective.AllowOut, "1.1.1.1") {
		t.Errorf("kept: %+v", state)
	}
	r.send(keyA, "PUT", path+"?grants=maybe", `{}`).want(http.StatusBadRequest, "grants must be keep or end")
	r.send(keyA, "PUT", path, `{"denyOut":["0.0.0.0/0"]}`).want(http.StatusNoContent)
	if state := r.state(id); len(state.Grants)+len(state.Effective.AllowOut) != 0 {
		t.Errorf("ended: %+v", state)
	}
	grant()
	r.send(keyA, "PUT", path+"?grants=end", `{}`).want(http.StatusNoContent)
	if state := r.state(id); len(state.Grants) != 0 {
		t.Errorf("ended: %+v", state)
	}
}

func TestGrants(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"denyOut":["0.0.0.0/0"]}`).SandboxID
	path := "/sandboxes/" + id + "/network/grants"
	before := time.Now().Truncate(time.Microsecond)
	made := r.send(keyA, "POST", path, `{"allowOut":["pkg.example.net","*.files.example.net"],"seconds":600}`).want(http.StatusCreated)
	if made.header.Get(api.HeaderNetworkGeneration) != "2" || made.header.Get(api.HeaderFlowsCut) != "3" || made.header.Get("ETag") != `"2"` {
		t.Errorf("receipt %v", made.header)
	}
	grant := decodeAs[api.Grant](made)
	if grant.ID == "" || !slices.Equal(grant.AllowOut, []string{"pkg.example.net", "*.files.example.net"}) ||
		grant.CreatedAt.Before(before) || grant.ExpiresAt.Sub(before) < 10*time.Minute || grant.ExpiresAt.Sub(before) > 11*time.Minute {
		t.Errorf("%+v", grant)
	}
	listed := decodeAs[[]api.Grant](r.send(keyA, "GET", path, "").want(http.StatusOK))
	if len(listed) != 1 || !reflect.DeepEqual(listed[0], grant) {
		t.Errorf("listed %+v, made %+v", listed, grant)
	}
	many := quoted(strings.Repeat("a", 10)) + strings.Repeat(`,"1.1.1.1"`, 100)
	for body, text := range map[string]string{
		`{}`:                               "allowOut is required",
		`{"allowOut":["pkg.example.net"]}`: "seconds must be from 1 to 86400, got 0",
		`{"allowOut":["pkg.example.net"],"seconds":86401}`: "seconds must be from 1 to 86400, got 86401",
		`{"allowOut":[` + many + `],"seconds":1}`:          "allowOut has 101 entries",
	} {
		r.send(keyA, "POST", path, body).want(http.StatusBadRequest, text)
	}
	r.send(keyB, "GET", path, "").want(http.StatusNotFound)
	r.send(keyB, "POST", path, `{"allowOut":["pkg.example.net"],"seconds":1}`).want(http.StatusNotFound)
	r.send(keyB, "DELETE", path+"/"+grant.ID, "").want(http.StatusNotFound, "doesn't exist")
	r.send(keyA, "DELETE", path+"/gnone", "").want(http.StatusNotFound, "has no such grant")
	r.send(keyA, "DELETE", path+"/"+grant.ID, "").want(http.StatusNoContent)
	r.send(keyA, "DELETE", path+"/"+grant.ID, "").want(http.StatusNotFound, "has no such grant")
	r.engine.fails = sandbox.ErrGrants
	r.send(keyA, "POST", path, `{"allowOut":["pkg.example.net"],"seconds":1}`).want(http.StatusConflict, "100 grants already")
}

func TestEditNetwork(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"allowOut":["1.1.1.0/24","Example.com"],"denyOut":["0.0.0.0/0","8.8.8.8"]}`).SandboxID
	path := "/sandboxes/" + id + "/network"
	want := func(when string, allow, deny string) {
		t.Helper()
		record := r.record(id)
		if got := strings.Join(record.Network.AllowOut, " ") + " | " + strings.Join(record.Network.DenyOut, " "); got != allow+" | "+deny {
			t.Errorf("%s: %s, want %s | %s", when, got, allow, deny)
		}
	}
	done := r.send(keyA, "PATCH", path, `{"allow":["pkg.example.net","8.8.8.8/32","EXAMPLE.com."]}`).want(http.StatusOK)
	want("allow", "1.1.1.0/24 Example.com pkg.example.net 8.8.8.8/32", "0.0.0.0/0")
	if state := decodeAs[api.NetworkState](done); state.Generation != 2 || len(state.Effective.AllowOut) != 4 || done.header.Get(api.HeaderFlowsCut) != "3" {
		t.Errorf("answer %+v, %v", state, done.header)
	}
	r.send(keyA, "PATCH", path, `{"deny":["example.com","8.8.8.8","9.9.9.0/24"]}`).want(http.StatusOK)
	want("deny", "1.1.1.0/24 pkg.example.net", "0.0.0.0/0 8.8.8.8 9.9.9.0/24")
	r.send(keyA, "PATCH", path, `{"deny":["never-there.org"]}`).want(http.StatusOK)

	// What would be reachable all the same is refused, and nothing changes.
	r.send(keyA, "POST", path+"/grants", `{"allowOut":["*.granted.org"],"seconds":600}`).want(http.StatusCreated)
	before := r.record(id)
	for body, text := range map[string]string{
		`{}`:                                   "one of allow and deny is needed",
		`{"deny":["1.1.1.1"]}`:                 `"1.1.1.1" would still be allowed: 1.1.1.1 is in allowOut entry 1.1.1.0/24`,
		`{"deny":["a.granted.org"]}`:           `"a.granted.org" would still be allowed: *.granted.org in allowOut allows a.granted.org`,
		`{"deny":["*.a.granted.org"]}`:         `would still be allowed`,
		`{"allow":["x.org"],"deny":["X.org"]}`: `is in both allow and deny`,
		`{"allow":["300.1.1.1"]}`:              `300.1.1.1`,
		`{"deny":["not a name"]}`:              `invalid denied CIDR "not a name"`,
		`{"deny":["a.test"` + strings.Repeat(`,"a.test"`, 10_000) + `]}`: `allow and deny have 10001 entries, at most 10000 are accepted in an edit`,
		`{"allowOut":["1.1.1.1"],"deny":["9.9.9.9"]}`:                    `allowOut is not a setting here`,
	} {
		r.send(keyA, "PATCH", path, body).want(http.StatusBadRequest, text)
	}
	if after := r.record(id); !reflect.DeepEqual(before, after) {
		t.Errorf("a refused edit changed the record: %+v", after)
	}
	open := r.create(keyA, "").SandboxID
	r.send(keyA, "PATCH", "/sandboxes/"+open+"/network", `{"deny":["example.com"]}`).
		want(http.StatusBadRequest, `"example.com" would still be allowed: example.com is in no list and the default is allow`)
	r.send(keyA, "PATCH", "/sandboxes/"+open+"/network", `{"allow":["example.com"]}`).want(http.StatusBadRequest, "ALL_TRAFFIC")
	r.send(keyB, "PATCH", path, `{"deny":["9.9.9.9"]}`).want(http.StatusNotFound)
}

// Two who edit at once both have their way.
func TestEditsAtOnce(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"denyOut":["0.0.0.0/0"]}`).SandboxID
	var editors sync.WaitGroup
	for i := range 20 {
		editors.Go(func() {
			r.send(keyA, "PATCH", "/sandboxes/"+id+"/network", fmt.Sprintf(`{"allow":["1.1.1.%d"]}`, i)).want(http.StatusOK)
		})
	}
	editors.Wait()
	if n := len(r.record(id).Network.AllowOut); n != 20 {
		t.Errorf("%d of 20 entries are there", n)
	}
}
