package control

import (
	"net/http"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
)

func TestSecrets(t *testing.T) {
	r := newRig(t)
	list := func(key string) (names []string) {
		t.Helper()
		for _, s := range decodeAs[[]api.Secret](r.send(key, "GET", "/secrets", "").want(http.StatusOK)) {
			names = append(names, s.Name)
			if s.CreatedAt.IsZero() || s.UpdatedAt.Before(s.CreatedAt) {
				t.Errorf("secret %+v", s)
			}
		}
		return names
	}
	all := r.send(keyA, "PUT", "/secrets/OpenAI", `{"value":"hunter2"}`).want(http.StatusOK).body
	all += r.send(keyA, "PUT", "/secrets/another", `{"value":"hunter2"}`).want(http.StatusOK).body
	all += r.send(keyA, "PUT", "/secrets/openai", `{"value":"hunter2b"}`).want(http.StatusOK).body
	if got := strings.Join(list(keyA), " "); got != "another openai" {
		t.Errorf("team A has %s", got)
	}
	if got := list(keyB); got != nil {
		t.Errorf("team B has %v", got)
	}
	all += r.send(keyA, "GET", "/secrets", "").body + r.log.String()
	if strings.Contains(all, "hunter2") {
		t.Errorf("a value is shown: %s", all)
	}

	rules := `{"templateID":"base","network":{"rules":{"x.com":[{"transform":{"headers":{"A":"${e2b.secrets.OPENAI}"}}}]}}}`
	r.send(keyA, "POST", "/v2/sandboxes", rules).want(http.StatusCreated)
	r.send(keyB, "POST", "/v2/sandboxes", rules).want(http.StatusBadRequest, `Secret "openai" does not exist`)

	r.send(keyB, "DELETE", "/secrets/openai", "").want(http.StatusNotFound, `Secret "openai" does not exist`)
	r.send(keyA, "DELETE", "/secrets/openai", "").want(http.StatusNoContent)
	r.send(keyA, "DELETE", "/secrets/openai", "").want(http.StatusNotFound)
	r.send(keyA, "POST", "/v2/sandboxes", rules).want(http.StatusBadRequest, `Secret "openai" does not exist`)
}

func TestSecretRefusals(t *testing.T) {
	r := newRig(t)
	for _, test := range []struct{ name, body, text string }{
		{"a", `{}`, "value is required"},
		{"a", `{"value":""}`, "value is empty"},
		{"a", `{"value":null}`, "value is required"},
		{"a", `{"value":{"v":"hunter2"}}`, "value must be a string, got a value of another type"},
		{"a", `{"value":"hunter2\n"}`, "value has a control character"},
		{"a", `{"value":" hunter2"}`, "value has a control character, or a space at its beginning or end"},
		{"a", `{"value":"` + strings.Repeat("hunter2", 10000) + `"}`, "value has more than 65536 bytes"},
		{"a%20b", `{"value":"hunter2"}`, `secret name "a b" may have letters, digits, - and _ only`},
		{"sec_1", `{"value":"hunter2"}`, "begins with sec_"},
		{strings.Repeat("a", 65), `{"value":"hunter2"}`, "is longer than 64 characters"},
	} {
		refusal := r.send(keyA, "PUT", "/secrets/"+test.name, test.body).want(http.StatusBadRequest, test.text)
		if strings.Contains(refusal.body, "hunter2") {
			t.Errorf("the refusal repeats the value: %s", refusal.body)
		}
	}
	r.send("", "GET", "/secrets", "").want(http.StatusUnauthorized)
	r.send("", "PUT", "/secrets/a", `{"value":"x"}`).want(http.StatusUnauthorized)
	if got := r.send(keyA, "GET", "/secrets", "").want(http.StatusOK).body; got != "[]" {
		t.Errorf("something was stored: %s", got)
	}
}
