package control

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/store"
)

// operate makes a request on the operator's socket, without a key.
func (r *rig) operate(method, path, body string) answer {
	r.t.Helper()
	return r.sendTo(r.operator, "", method, path, body)
}

func TestOperatorActsForDefaultTeam(t *testing.T) {
	r := newRig(t)
	made := decodeAs[api.Sandbox](r.operate("POST", "/v2/sandboxes", `{"templateID":"base"}`).want(http.StatusCreated))
	if team := r.record(made.SandboxID).Team; team != api.DefaultTeam {
		t.Errorf("created for team %q", team)
	}
	r.send(keyA, "GET", "/sandboxes/"+made.SandboxID, "").want(http.StatusNotFound)
	r.sendTo(r.operator, keyA, "GET", "/sandboxes/"+made.SandboxID, "").want(http.StatusNotFound)
	r.operate("GET", "/sandboxes/"+made.SandboxID, "").want(http.StatusOK)
}

func TestKeys(t *testing.T) {
	r := newRig(t)
	own := decodeAs[api.CreatedKey](r.operate("POST", "/operator/keys", `{"name":"ci"}`).want(http.StatusCreated))
	shared := decodeAs[api.CreatedKey](r.operate("POST", "/operator/keys", `{"team":"team-a"}`).want(http.StatusCreated))
	plain := decodeAs[api.CreatedKey](r.operate("POST", "/operator/keys", ``).want(http.StatusCreated))

	mine := r.create(own.Secret, "").SandboxID
	if r.record(mine).Team != own.ID || own.Team != own.ID || own.Name != "ci" {
		t.Errorf("a key without a team is %+v, its sandbox is team %q's", own, r.record(mine).Team)
	}
	r.send(plain.Secret, "GET", "/sandboxes/"+mine, "").want(http.StatusNotFound)
	of := r.create(keyA, "").SandboxID
	r.send(shared.Secret, "GET", "/sandboxes/"+of, "").want(http.StatusOK)

	list := r.operate("GET", "/operator/keys", "").want(http.StatusOK)
	var ids []string
	for _, k := range decodeAs[[]api.Key](list) {
		ids = append(ids, k.ID)
		if !strings.HasPrefix(k.Prefix, "e2b_") || len(k.Prefix) != 8 {
			t.Errorf("key %+v", k)
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(ids)), slices.Sorted(slices.Values([]string{"a", "b", own.ID, shared.ID, plain.ID}))) {
		t.Errorf("listed %v", ids)
	}
	if strings.Contains(list.body, own.Secret) || strings.Contains(list.body, `"hash"`) {
		t.Errorf("the list shows a key or a hash: %s", list.body)
	}

	r.operate("DELETE", "/operator/keys/"+own.ID, "").want(http.StatusNoContent)
	r.send(own.Secret, "GET", "/sandboxes", "").want(http.StatusUnauthorized, "deleted")
	r.operate("DELETE", "/operator/keys/"+own.ID, "").want(http.StatusNotFound, own.ID)
}

func TestKeyRefusals(t *testing.T) {
	r := newRig(t)
	for body, text := range map[string]string{
		`{"name":5}`:      "name must be a string, got 5",
		`{"name":"a\nb"}`: "name must be",
		`{"name":"` + strings.Repeat("x", 101) + `"}`: "name must be",
		`{"team":"a b"}`:  `team must be`,
		`{"team":"../x"}`: `team must be`,
		`{"team":"` + strings.Repeat("x", 64) + `"}`: "team must be",
	} {
		r.operate("POST", "/operator/keys", body).want(http.StatusBadRequest, text)
	}
}

func TestTemplates(t *testing.T) {
	r := newRig(t)
	want := `[{"id":"t1","names":["base","code-interpreter-v1"],"source":"the host's own files","sizeBytes":0,` +
		`"cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"createdAt":"2026-01-02T03:04:05Z"}]`
	if got := r.operate("GET", "/operator/templates", "").want(http.StatusOK).body; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, body := range []string{
		`{"names":["x"],"dir":"/srv/root"}`,
		`{"names":["x"],"tar":"/srv/root.tar.gz"}`,
		`{"names":["x","y"],"image":"registry.test/app:1"}`,
		`{"names":["x"],"image":"registry.test/app:1","insecure":true}`,
	} {
		made := decodeAs[api.Template](r.operate("POST", "/operator/templates", body).want(http.StatusCreated))
		if made.ID != "t2" || made.Names[0] != "x" {
			t.Errorf("%s: %+v", body, made)
		}
	}
	calls := []string{"dir /srv/root", "tar /srv/root.tar.gz", "image registry.test/app:1", "image registry.test/app:1 insecure"}
	if !slices.Equal(r.templates.added, calls) {
		t.Errorf("asked for %v, want %v", r.templates.added, calls)
	}
	r.operate("DELETE", "/operator/templates/base", "").want(http.StatusNoContent)
	r.operate("DELETE", "/operator/templates/nope", "").want(http.StatusNotFound, `Template "nope" not found`)
	if !slices.Equal(r.templates.removed, []string{"base"}) {
		t.Errorf("removed %v", r.templates.removed)
	}
}

func TestTemplateRefusals(t *testing.T) {
	r := newRig(t)
	for body, text := range map[string]string{
		``:                                       "empty",
		`{"names":["x"]}`:                        "exactly one of dir, tar and image is needed, got 0",
		`{"names":["x"],"dir":"/a","image":"b"}`: "got 2",
		`{"dir":"/a"}`:                           "names is required",
		`{"names":["x"],"dir":"a/b"}`:            `"a/b" is not an absolute path`,
		`{"names":["x"],"tar":"./b"}`:            "is not an absolute path",
		`{"names":"x","dir":"/a"}`:               `names must be a list, got "x"`,
	} {
		r.operate("POST", "/operator/templates", body).want(http.StatusBadRequest, text)
	}
	if len(r.templates.added) > 0 {
		t.Errorf("refused templates were added: %v", r.templates.added)
	}
	// The operator sees why it failed: it is about the operator's own machine.
	r.templates.fails = errors.New("open /srv/root.tar: no such file or directory")
	r.operate("POST", "/operator/templates", `{"names":["x"],"tar":"/srv/root.tar"}`).want(http.StatusUnprocessableEntity, "/srv/root.tar: no such file")
	r.templates.fails = store.ErrFull
	r.operate("POST", "/operator/templates", `{"names":["x"],"tar":"/srv/root.tar"}`).want(http.StatusInsufficientStorage, "disk is full")
}
