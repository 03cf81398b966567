package control

import (
	"net/http"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestCreateLink(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Domain = "moat.test:8443" })
	id := r.create(keyA, `"network":{"allowPublicTraffic":false,"ports":{"80":"public"}}`).SandboxID
	for body, life := range map[string]string{
		`{"port":8080}`:                  "15m0s",
		`{"port":8080,"seconds":null}`:   "15m0s",
		`{"port":8080,"seconds":1}`:      "1s",
		`{"port":8080,"seconds":604800}`: "168h0m0s",
	} {
		made := decodeAs[api.Link](r.send(keyA, "POST", "/sandboxes/"+id+"/links", body).want(http.StatusCreated))
		if want := "https://8080-" + id + ".moat.test:8443/?moat-link=" + id + ".8080." + life; made.URL != want || made.ExpiresAt.Unix() != 1_800_000_000 {
			t.Errorf("%s: %+v, want %s", body, made, want)
		}
	}
}

func TestLinkRefusals(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Domain = "moat.test" })
	id := r.create(keyA, `"network":{"allowPublicTraffic":false,"ports":{"80":"public"}}`).SandboxID
	open := r.create(keyA, `"network":{"ports":{"8080":"private"}}`).SandboxID
	for _, test := range []struct {
		key, id, body string
		status        int
		text          string
	}{
		{keyA, id, ``, 400, "empty"},
		{keyA, id, `{}`, 400, "port: 0 is not a port"},
		{keyA, id, `{"port":-1}`, 400, "port: -1 is not a port"},
		{keyA, id, `{"port":65536}`, 400, "port: 65536 is not a port"},
		{keyA, id, `{"port":"8080"}`, 400, `port must be a whole number, got "8080"`},
		{keyA, id, `{"port":49983}`, 400, "daemon"},
		{keyA, id, `{"port":8080,"seconds":0}`, 400, "seconds must be from 1 to 604800, got 0"},
		{keyA, id, `{"port":8080,"seconds":604801}`, 400, "got 604801"},
		{keyA, id, `{"port":8080,"seconds":9223372036854775807}`, 400, "seconds must be"},
		{keyA, id, `{"port":8080,"seconds":1.5}`, 400, "seconds must be a whole number"},
		{keyA, id, `{"port":8080,"second":60}`, 400, "second is not a setting here"},
		{keyA, id, `{"port":80}`, 409, "Port 80 of sandbox"},
		{keyA, open, `{"port":3000}`, 409, "is open to everybody"},
		{keyA, open, `{"port":8080}`, 201, ""},
		{keyB, id, `{"port":8080}`, 404, "doesn't exist"},
		{keyA, "inone", `{"port":8080}`, 404, "doesn't exist"},
		{keyA, "I!", `{"port":8080}`, 400, "Invalid sandbox ID"},
		{"", id, `{"port":8080}`, 401, "API key is missing"},
	} {
		r.send(test.key, "POST", "/sandboxes/"+test.id+"/links", test.body).want(test.status, test.text)
	}
	r.engine.fails = sandbox.ErrNotFound // it has ended meanwhile
	r.send(keyA, "POST", "/sandboxes/"+id+"/links", `{"port":8080}`).want(http.StatusNotFound, "doesn't exist")
	bare := newRig(t)
	id = bare.create(keyA, `"network":{"allowPublicTraffic":false}`).SandboxID
	bare.send(keyA, "POST", "/sandboxes/"+id+"/links", `{"port":8080}`).want(http.StatusConflict, "no domain")
}
