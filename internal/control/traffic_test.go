package control

import (
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// private are the fields of a sandbox that asks for a token.
const private = `"network":{"allowPublicTraffic":false}`

// token is the traffic token in an answer, "" for null.
func token(a answer) string {
	a.t.Helper()
	if made := decodeAs[api.Sandbox](a); made.TrafficAccessToken != nil {
		return *made.TrafficAccessToken
	}
	return ""
}

// TestTrafficTokenIsHandedOut: by create, by connect where E2B's clients ask,
// and by nothing else.
func TestTrafficTokenIsHandedOut(t *testing.T) {
	r := newRig(t)
	made := r.create(keyA, private)
	path := "/sandboxes/" + made.SandboxID
	if made.TrafficAccessToken == nil || *made.TrafficAccessToken == "" {
		t.Fatalf("created without a token: %+v", made)
	}
	want := *made.TrafficAccessToken
	for _, test := range []struct{ path, body, want string }{
		{"/v2" + path + "/connect", ``, want}, // E2B's 2.51
		{"/v2" + path + "/connect", `{}`, want},
		{"/v2" + path + "/connect", `{"timeout":1}`, want},
		{path + "/connect", `{"timeout":300}`, want}, // E2B's 2.45
		{path + "/connect", `{"timeout":0}`, want},
		{path + "/connect", `{}`, ""}, // CubeSandbox's
		{path + "/connect", ``, ""},
		{path + "/connect", `{"timeout":null}`, ""},
	} {
		if got := token(r.send(keyA, "POST", test.path, test.body).want(http.StatusOK)); got != test.want {
			t.Errorf("%s %s: token %q, want %q", test.path, test.body, got, test.want)
		}
	}
	r.send(keyA, "POST", path+"/timeout", `{"timeout":1000}`).want(http.StatusNoContent)
	for _, path := range []string{path, "/sandboxes", "/v2/sandboxes"} {
		if got := r.send(keyA, "GET", path, "").want(http.StatusOK); strings.Contains(got.body, want) || strings.Contains(got.body, "Token") {
			t.Errorf("GET %s shows the token: %s", path, got.body)
		}
	}
	if public := r.create(keyA, ""); public.TrafficAccessToken != nil {
		t.Errorf("a public sandbox has token %q", *public.TrafficAccessToken)
	}
	if strings.Contains(r.log.String(), want) {
		t.Error("the token is in the log")
	}
}

func TestRotateTrafficToken(t *testing.T) {
	r := newRig(t)
	made := r.create(keyA, private)
	path := "/sandboxes/" + made.SandboxID
	seen := map[string]bool{*made.TrafficAccessToken: true}
	for _, body := range []string{``, `{}`, `{"anything":1}`} {
		rotated := decodeAs[api.TrafficToken](r.send(keyA, "POST", path+"/traffic-token", body).want(http.StatusOK)).TrafficAccessToken
		if seen[rotated] || rotated == "" {
			t.Errorf("%q: token %q is not a new one", body, rotated)
		}
		seen[rotated] = true
		if got := token(r.send(keyA, "POST", "/v2"+path+"/connect", ``).want(http.StatusOK)); got != rotated {
			t.Errorf("connect tells %q, want %q", got, rotated)
		}
	}
	r.send(keyA, "POST", path+"/traffic-token", `[]`).want(http.StatusBadRequest, "must be a JSON object")

	before := r.record(made.SandboxID)
	r.engine.fails = errors.New("no such luck")
	r.send(keyA, "POST", path+"/traffic-token", "").want(http.StatusInternalServerError)
	r.engine.fails = nil
	if after := r.record(made.SandboxID); !reflect.DeepEqual(before, after) {
		t.Errorf("a failed rotation changed the record: %+v", after)
	}

	public := r.create(keyA, "").SandboxID
	r.send(keyA, "POST", "/sandboxes/"+public+"/traffic-token", "").want(http.StatusConflict, "is open to everybody: it has no traffic token")
	r.send(keyA, "POST", "/sandboxes/I!/traffic-token", "").want(http.StatusBadRequest, "Invalid sandbox ID")
}

// TestGuard: when the daemon asks for a token, and when that is asked too
// little.
func TestGuard(t *testing.T) {
	r := newRig(t)
	const without = "You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag."
	for _, test := range []struct {
		path, fields string
		secure       bool
		refused      string
	}{
		{"/sandboxes", `,"secure":true,` + private, true, ""},
		{"/sandboxes", `,` + private, true, ""},
		{"/sandboxes", `,"secure":null,` + private, true, ""},
		{"/sandboxes", `,"network":{"allow_public_traffic":false}`, true, ""},
		{"/sandboxes", `,"secure":false,` + private, false, without},
		{"/sandboxes", `,"network":{"ports":{"8080":"private"}}`, true, ""},
		{"/sandboxes", `,"secure":false,"network":{"ports":{"80":"public","8080":"private"}}`, false, without},
		{"/sandboxes", `,"secure":false,"network":{"ports":{"80":"public"}}`, false, ""},
		{"/sandboxes", `,"network":{"allowPublicTraffic":true}`, false, ""},
		{"/sandboxes", `,"network":{"allowPublicTraffic":null}`, false, ""},
		{"/v2/sandboxes", `,` + private, true, ""},
		{"/v2/sandboxes", `,"secure":false,` + private, true, ""},
	} {
		answer := r.send(keyA, "POST", test.path, `{"templateID":"base"`+test.fields+`}`)
		if test.refused != "" {
			answer.want(http.StatusBadRequest, test.refused)
			continue
		}
		answer.want(http.StatusCreated)
		spec := r.engine.lastSpec()
		if spec.Secure != test.secure || (!spec.Secure && spec.Ingress.Private()) {
			t.Errorf("%s %s: secure %t, ingress %+v", test.path, test.fields, spec.Secure, spec.Ingress)
		}
		if (token(answer) != "") != spec.Ingress.Private() {
			t.Errorf("%s %s: token %q", test.path, test.fields, token(answer))
		}
	}
}

func TestMaskRequestHost(t *testing.T) {
	r := newRig(t)
	label := strings.Repeat("a", 63)
	for mask, refused := range map[string]string{
		"":                              "",
		"localhost":                     "",
		"localhost:${PORT}":             "",
		"localhost:8080":                "",
		"App.Example.COM":               "",
		"${PORT}.app.internal":          "",
		"${PORT}-app.test:${PORT}":      "",
		"127.0.0.1:${PORT}":             "",
		"[::1]":                         "",
		"[::1]:${PORT}":                 "",
		"xn--bcher-kva.example":         "",
		label + ".test":                 "",
		"b\u00fccher.example":           "mask request host 'bücher.example' is not ASCII. Please use ASCII characters only.",
		"b\u00fccher.example:${PORT}":   "mask request host 'bücher.example' is not ASCII",
		"\u212aelvin.test":              "is not ASCII",
		"http://localhost":              "mask request host is not valid: http://localhost",
		"localhost/path":                "not valid",
		"user@localhost":                "not valid",
		"a b":                           "not valid",
		" localhost":                    "not valid",
		"localhost\n":                   "not valid",
		"localhost\r\nX-Evil: 1":        "not valid",
		"a\tb":                          "not valid",
		"localhost:":                    "not valid",
		"localhost:0":                   "not valid",
		"localhost:65536":               "not valid",
		"localhost:+80":                 "not valid",
		"localhost:http":                "not valid",
		"localhost:${PORT}0":            "not valid",
		"localhost:${port}":             "not valid",
		"localhost:$PORT":               "not valid",
		"${PORT}":                       "",
		"${PORT}:${PORT}:${PORT}":       "not valid",
		":8080":                         "not valid",
		"::1":                           "not valid",
		"[::1":                          "not valid",
		"[localhost]":                   "not valid",
		"[fe80::1%eth0]":                "not valid",
		"a..b":                          "not valid",
		".a":                            "not valid",
		"-a.test":                       "not valid",
		"under_score.test":              "not valid",
		"xn--a":                         "not valid",
		"a" + label + ".test":           "not valid",
		strings.Repeat("a.", 127) + "a": "not valid",
		"${HOST}":                       "not valid",
	} {
		body := `{"templateID":"base","network":{"maskRequestHost":` + quoted(mask) + `}}`
		answer := r.send(keyA, "POST", "/sandboxes", body)
		if refused != "" {
			answer.want(http.StatusBadRequest, refused)
			continue
		}
		id := decodeAs[api.Sandbox](answer.want(http.StatusCreated)).SandboxID
		if got := r.engine.lastSpec().Ingress.MaskHost; got != mask {
			t.Errorf("%q became %q", mask, got)
		}
		shown := decodeAs[api.SandboxDetail](r.send(keyA, "GET", "/sandboxes/"+id, "").want(http.StatusOK)).Network
		if mask == "" && shown != nil || mask != "" && (shown == nil || shown.MaskRequestHost == nil || *shown.MaskRequestHost != mask) {
			t.Errorf("%q is shown as %+v", mask, shown)
		}
	}
}

// TestTrafficIsShownAsGiven: GET repeats what create said.
func TestTrafficIsShownAsGiven(t *testing.T) {
	r := newRig(t)
	for fields, want := range map[string]string{
		``:                                      ``,
		`"network":{}`:                          ``,
		`"network":{"allowPublicTraffic":null}`: ``,
		`"network":{"allowPublicTraffic":true}`: `"network":{"allowPublicTraffic":true}`,
		private:                                 `"network":{"allowPublicTraffic":false}`,
		`"network":{"mask_request_host":"a:${PORT}","allow_public_traffic":false,"denyOut":["1.1.1.1"]}`: `"network":{"denyOut":["1.1.1.1"],"allowPublicTraffic":false,"maskRequestHost":"a:${PORT}"}`,
		`"network":{"ports":{"8080":"private","80":"public"},"httpsPorts":[8443,443]}`:                   `"network":{"httpsPorts":[8443,443],"ports":{"80":"public","8080":"private"}}`,
		`"network":{"ports":{},"httpsPorts":[]}`:                                                         ``,
	} {
		id := r.create(keyA, fields).SandboxID
		got := r.send(keyA, "GET", "/sandboxes/"+id, "").want(http.StatusOK).body
		if want == "" && strings.Contains(got, `"network"`) || !strings.Contains(got, want) {
			t.Errorf("%s is shown as %s", fields, got)
		}
	}
}

// TestTrafficIsSettledAtCreate: an update may repeat it and not change it.
func TestTrafficIsSettledAtCreate(t *testing.T) {
	r := newRig(t)
	open := r.create(keyA, "").SandboxID
	closed := r.create(keyA, `"network":{"allowPublicTraffic":false,"maskRequestHost":"a:${PORT}","ports":{"80":"public"},"httpsPorts":[443]}`).SandboxID
	for _, test := range []struct{ id, body, refused string }{
		{open, `{"allowPublicTraffic":true,"maskRequestHost":""}`, ""},
		{open, `{"allowPublicTraffic":null,"maskRequestHost":null}`, ""},
		{open, `{"allowPublicTraffic":false}`, "allowPublicTraffic cannot be changed after the sandbox is created: it is true"},
		{open, `{"maskRequestHost":"x"}`, `maskRequestHost cannot be changed after the sandbox is created: it is ""`},
		{open, `{"ports":{},"httpsPorts":[]}`, ""},
		{open, `{"ports":{"80":"private"}}`, "ports cannot be changed after the sandbox is created"},
		{open, `{"httpsPorts":[443]}`, "httpsPorts cannot be changed after the sandbox is created"},
		{closed, `{}`, ""},
		{closed, `{"ports":{"80":"public"},"httpsPorts":[443]}`, ""},
		{closed, `{"ports":{"80":"private"}}`, "ports cannot be changed"},
		{closed, `{"ports":{}}`, "ports cannot be changed"},
		{closed, `{"ports":{"http":"public"}}`, `ports: "http" is not a port`},
		{closed, `{"allow_public_traffic":false,"mask_request_host":"a:${PORT}"}`, ""},
		{closed, `{"allowPublicTraffic":true}`, "allowPublicTraffic cannot be changed after the sandbox is created: it is false"},
		{closed, `{"maskRequestHost":""}`, `maskRequestHost cannot be changed after the sandbox is created: it is "a:${PORT}"`},
		{closed, `{"allowPublicTraffic":false,"allow_public_traffic":true}`, "allowPublicTraffic is false but allow_public_traffic is true"},
	} {
		before := r.record(test.id)
		answer := r.send(keyA, "PUT", "/sandboxes/"+test.id+"/network", test.body)
		if test.refused != "" {
			answer.want(http.StatusBadRequest, test.refused)
		} else {
			answer.want(http.StatusNoContent)
		}
		if after := r.record(test.id); !reflect.DeepEqual(after.Ingress, before.Ingress) || after.TrafficNonce != before.TrafficNonce {
			t.Errorf("%s changed %+v to %+v", test.body, before.Ingress, after.Ingress)
		}
	}
	want := sandbox.Ingress{
		AllowPublicTraffic: new(bool), MaskHost: "a:${PORT}", Ports: map[uint16]bool{80: true}, HTTPSPorts: []uint16{443},
	}
	if got := r.record(closed).Ingress; !reflect.DeepEqual(got, want) {
		t.Errorf("recorded %+v, want %+v", got, want)
	}
}
