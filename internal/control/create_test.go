package control

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestCreateAnswer(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Domain = "moat.test:8443" })
	made := r.send(keyA, "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(http.StatusCreated)
	id := decodeAs[api.Sandbox](made).SandboxID
	want := fmt.Sprintf(`{"sandboxID":%q,"templateID":"t1","alias":"base","clientID":"6532622b","envdVersion":%q,`+
		`"envdAccessToken":"guest-token-of-%s","trafficAccessToken":null,"domain":"moat.test:8443"}`, id, api.GuestVersion, id)
	if made.body != want {
		t.Errorf("got  %s\nwant %s", made.body, want)
	}
	if !sandbox.ValidID(id) {
		t.Errorf("id %q", id)
	}
}

// TestCreateDialects: what the two routes make of the same body.
func TestCreateDialects(t *testing.T) {
	r := newRig(t)
	for _, test := range []struct {
		path, fields string
		secure       bool
		timeout      time.Duration
	}{
		{"/sandboxes", ``, false, 300 * time.Second},
		{"/sandboxes", `,"secure":true,"timeout":17`, true, 17 * time.Second},
		{"/sandboxes", `,"secure":false`, false, 300 * time.Second},
		{"/sandboxes", `,"secure":null,"timeout":null`, false, 300 * time.Second},
		{"/v2/sandboxes", ``, true, 300 * time.Second},
		{"/v2/sandboxes", `,"secure":false,"timeout":86400`, true, 24 * time.Hour},
	} {
		made := decodeAs[api.Sandbox](r.send(keyA, "POST", test.path, `{"templateID":"base"`+test.fields+`}`).want(http.StatusCreated))
		spec := r.engine.lastSpec()
		if spec.Secure != test.secure || spec.Timeout != test.timeout || spec.Team != "team-a" || spec.Template != "base" {
			t.Errorf("%s %s: spec %+v", test.path, test.fields, spec)
		}
		if (made.EnvdAccessToken != "") != test.secure {
			t.Errorf("%s %s: token %q", test.path, test.fields, made.EnvdAccessToken)
		}
	}
}

// TestCreateAsSDKsDo sends what real clients send.
func TestCreateAsSDKsDo(t *testing.T) {
	r := newRig(t)
	yes := true
	for name, test := range map[string]struct {
		path, body string
		want       sandbox.Spec
	}{
		"python 2.45": {"/sandboxes", `{"templateID":"base","metadata":{},"envVars":{},"timeout":300,"secure":true,"allow_internet_access":true,
			"network":{"allowOut":["1.1.1.1","8.8.8.0/24"],"denyOut":["0.0.0.0/0"],"allowPublicTraffic":true}}`,
			sandbox.Spec{Secure: true, InternetAccess: &yes, Metadata: map[string]string{}, Env: map[string]string{},
				Ingress: sandbox.Ingress{Public: true, AllowPublicTraffic: &yes},
				Network: policy.Document{AllowOut: []string{"1.1.1.1", "8.8.8.0/24"}, DenyOut: []string{"0.0.0.0/0"}, Default: policy.Allow}}},
		"js 2.51": {"/v2/sandboxes", `{"templateID":"code-interpreter-v1","network":{}}`,
			sandbox.Spec{Template: "code-interpreter-v1", Secure: true, Network: policy.Document{Default: policy.Allow}}},
		"js 2.51, everything harmless": {"/v2/sandboxes", `{"templateID":"base","autoPause":false,"autoPauseMemory":true,"autoResume":{"enabled":false},
			"iam":{"tokens":{}},"volumeMounts":[],"mcp":null,"metadata":{"a":"b"},"envVars":{"C":"d=e"},
			"network":{"allowOut":null,"denyOut":["8.8.8.8"],"rules":{},"egressProxy":null,"maskRequestHost":"","allowPublicTraffic":null,"httpsPorts":[]}}`,
			sandbox.Spec{Secure: true, Metadata: map[string]string{"a": "b"}, Env: map[string]string{"C": "d=e"},
				Ingress: sandbox.Ingress{HTTPSPorts: []uint16{}},
				Network: policy.Document{DenyOut: []string{"8.8.8.8"}, Default: policy.Allow}}},
		"cube": {"/sandboxes", `{"templateID":"base","network":{"allow_out":["1.1.1.1"],"deny_out":["0.0.0.0/0"],"rules":[]},
			"lifecycle":{"onTimeout":"kill","autoResume":false},"distributionScope":[]}`,
			sandbox.Spec{Network: policy.Document{AllowOut: []string{"1.1.1.1"}, DenyOut: []string{"0.0.0.0/0"}, Default: policy.Allow}}},
		"an unknown field": {"/v2/sandboxes", `{"templateID":"base","someday":{"x":1}}`,
			sandbox.Spec{Secure: true, Network: policy.Document{Default: policy.Allow}}},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.send(keyA, "POST", test.path, test.body).want(http.StatusCreated)
			test.want.Team, test.want.Timeout = "team-a", 300*time.Second
			test.want.Ingress.Public = true
			if test.want.Template == "" {
				test.want.Template = "base"
			}
			if got := r.engine.lastSpec(); !reflect.DeepEqual(got, test.want) {
				t.Errorf("spec %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// TestInternetAccess: E2B's "open unless said otherwise" becomes an explicit
// document.
func TestInternetAccess(t *testing.T) {
	r := newRig(t)
	for _, test := range []struct {
		fields   string
		verdict  policy.Verdict
		internet string // as GET shows it
	}{
		{``, policy.Allow, `null`},
		{`"allow_internet_access":null`, policy.Allow, `null`},
		{`"allow_internet_access":true`, policy.Allow, `true`},
		{`"allow_internet_access":false`, policy.Deny, `false`},
		{`"allowInternetAccess":false`, policy.Deny, `false`},
		{`"allowInternetAccess":false,"allow_internet_access":false`, policy.Deny, `false`},
		{`"allow_internet_access":false,"network":{"allowOut":["1.1.1.1"]}`, policy.Deny, `false`},
		{`"network":{"denyOut":["0.0.0.0/0"]}`, policy.Allow, `null`},
	} {
		id := r.create(keyA, test.fields).SandboxID
		if got := r.record(id).Network.Default; got != test.verdict {
			t.Errorf("%s: default %v, want %v", test.fields, got, test.verdict)
		}
		shown := r.send(keyA, "GET", "/sandboxes/"+id, "").want(http.StatusOK)
		if !strings.Contains(shown.body, `"allowInternetAccess":`+test.internet) {
			t.Errorf("%s: GET %s, want allowInternetAccess %s", test.fields, shown.body, test.internet)
		}
	}
}

// badCreates are bodies that both dialects refuse with 400, and what the
// message says.
var badCreates = []struct{ body, text string }{
	// Not JSON, or not the right JSON.
	{``, "empty"},
	{`  `, "empty"},
	{`{`, "not valid JSON"},
	{`{"templateID":"base"} x`, "not valid JSON"},
	{`{templateID:"base"}`, "not valid JSON"},
	{"{\"templateID\":\"\xff\"}", "not valid JSON"},
	{`null`, "must be a JSON object, got null"},
	{`[]`, "must be a JSON object, got a list"},
	{`"base"`, "must be a JSON object, got a string"},
	{`42`, "must be a JSON object, got a number"},
	{`{"templateID":"base","timeout":1,"timeout":2}`, "duplicate key: timeout"},
	{`{"templateID":"base","network":{"denyOut":[],"denyOut":[]}}`, "duplicate key: network.denyOut"},
	{`{"templateID":"base","someday":{"x":1,"x":2}}`, "duplicate key: someday.x"},

	// Wrong types name the field and, unless it may be secret, the value.
	{`{"templateID":5}`, "templateID must be a string, got 5"},
	{`{"templateID":"base","timeout":"abc"}`, `timeout must be a whole number, got "abc"`},
	{`{"templateID":"base","timeout":1.5}`, "timeout must be a whole number, got 1.5"},
	{`{"templateID":"base","timeout":99999999999999999999}`, "timeout must be a whole number, got 99999999999999999999"},
	{`{"templateID":"base","secure":"yes"}`, `secure must be true or false, got "yes"`},
	{`{"templateID":"base","allow_internet_access":0}`, "allow_internet_access must be true or false, got 0"},
	{`{"templateID":"base","network":[]}`, "network must be an object, got []"},
	{`{"templateID":"base","network":{"allowOut":"1.1.1.1"}}`, `network.allowOut must be a list, got "1.1.1.1"`},
	{`{"templateID":"base","network":{"allowOut":["1.1.1.1","1.1.1.2","1.1.1.3",7]}}`, "network.allowOut[3] must be a string, got 7"},
	{`{"templateID":"base","network":{"denyOut":[null]}}`, "network.denyOut[0] must be a string, got null"},
	{`{"templateID":"base","metadata":{"k":5}}`, "metadata.k must be a string, got 5"},
	{`{"templateID":"base","metadata":[]}`, "metadata must be an object, got []"},
	{`{"templateID":"base","envVars":{"KEY":1234567}}`, "envVars.KEY must be a string, got a value of another type"},

	// Values.
	{`{}`, "templateID is required"},
	{`{"templateID":""}`, "templateID is required"},
	{`{"templateID":"a b"}`, `Invalid template reference: "a b"`},
	{`{"templateID":"../../etc"}`, "Invalid template reference"},
	{`{"templateID":"base","timeout":0}`, "Timeout must be greater than 0"},
	{`{"templateID":"base","timeout":-1}`, "Timeout must be greater than 0, got -1: every sandbox ends, after at most 24 hours"},
	{`{"templateID":"base","timeout":300.0}`, "timeout must be a whole number, got 300.0"},
	{`{"templateID":"base","timeout":86401}`, "Timeout cannot be greater than 24 hours"},
	{`{"templateID":"base","timeout":9223372036854775807}`, "Timeout cannot be greater than 24 hours"},
	{`{"templateID":"base","envVars":{"":"x"}}`, "environment variable"},
	{`{"templateID":"base","envVars":{"A=B":"x"}}`, `"A=B"`},
	{`{"templateID":"base","envVars":{"A":"x\u0000y"}}`, "envVars.A"},
	{`{"templateID":"base","metadata":{"k":"` + strings.Repeat("x", 64<<10) + `"}}`, "metadata has 65537 bytes"},

	// Addresses.
	{`{"templateID":"base","network":{"denyOut":["example.com"]}}`, "invalid denied CIDR example.com"},
	{`{"templateID":"base","network":{"denyOut":["*"]}}`, "invalid denied CIDR *"},
	{`{"templateID":"base","network":{"denyOut":["::"]}}`, "invalid denied CIDR ::"},
	{`{"templateID":"base","network":{"allowOut":["10.0.0.0/33"]}}`, "invalid allowed address 10.0.0.0/33"},
	{`{"templateID":"base","network":{"allowOut":["300.1.1.1"]}}`, "invalid allowed address 300.1.1.1"},
	{`{"templateID":"base","network":{"allowOut":[""]}}`, "invalid allowed address"},

	// Names.
	{`{"templateID":"base","network":{"allowOut":["*.github.com"]}}`, denyAllMissing},
	{`{"templateID":"base","network":{"allowOut":["1.1.1.1","*"],"denyOut":["0.0.0.0/1"]}}`, "invalid denied CIDR 0.0.0.0/1"},
	{`{"templateID":"base","network":{"allowOut":["github.com"],"denyOut":["0.0.0.1/32"]}}`, denyAllMissing},
	{`{"templateID":"base","network":{"allowOut":["https://github.com"],"denyOut":["0.0.0.0/0"]}}`, "invalid allowed address https://github.com: not an IP address, CIDR or domain name"},
	{`{"templateID":"base","network":{"allowOut":["github.com:443"],"denyOut":["0.0.0.0/0"]}}`, "invalid allowed address github.com:443"},
	{`{"templateID":"base","network":{"allowOut":["*github.com"],"denyOut":["0.0.0.0/0"]}}`, "invalid allowed address *github.com"},

	// Spellings that disagree, and settings in the wrong place.
	{`{"templateID":"base","allow_internet_access":true,"allowInternetAccess":false}`, "allow_internet_access is true but allowInternetAccess is false"},
	{`{"templateID":"base","network":{"denyOut":[],"deny_out":["1.1.1.1"]}}`, "network.denyOut and network.deny_out differ"},
	{`{"templateID":"base","network":{"allowOut":["1.1.1.1"],"allow_out":[]}}`, "network.allowOut and network.allow_out differ"},
	{`{"templateID":"base","network":{"denyout":["1.1.1.1"]}}`, "network.denyout is not a setting here"},
	{`{"templateID":"base","denyOut":["1.1.1.1"]}`, "denyOut has no effect here"},
	{`{"templateID":"base","allowPublicTraffic":false}`, "allowPublicTraffic has no effect here"},
	{`{"templateID":"base","mask_request_host":"x"}`, "mask_request_host has no effect here"},
	{`{"templateID":"base","network":{"allowPublicTraffic":false,"allow_public_traffic":true}}`, "network.allowPublicTraffic is false but network.allow_public_traffic is true"},
	{`{"templateID":"base","network":{"maskRequestHost":"a","mask_request_host":""}}`, "network.maskRequestHost is a but network.mask_request_host is "},
	{`{"templateID":"base","network":{"allowPublicTraffic":"false"}}`, `network.allowPublicTraffic must be true or false, got "false"`},
	{`{"templateID":"base","network":{"maskRequestHost":8080}}`, "network.maskRequestHost must be a string, got 8080"},
	{`{"templateID":"base","network":{"maskRequestHost":"http://localhost"}}`, "mask request host is not valid: http://localhost"},

	// What E2B and Cube have and this server does not enforce.
	{`{"templateID":"base","autoPause":true}`, "autoPause: pausing at the end of the timeout is not available yet: leave it out or send false"},
	{`{"templateID":"base","autoPauseMemory":false}`, "autoPauseMemory"},
	{`{"templateID":"base","autoResume":{"enabled":true}}`, "autoResume"},
	{`{"templateID":"base","autoResume":true}`, "autoResume"},
	{`{"templateID":"base","lifecycle":{"onTimeout":"pause"}}`, "lifecycle"},
	{`{"templateID":"base","lifecycle":{"onTimeout":"kill","autoResume":true}}`, "lifecycle"},
	{`{"templateID":"base","iam":{"tokens":{"x":{"audience":"y","tokenType":"JWT-SVID"}}}}`, "iam"},
	{`{"templateID":"base","volumeMounts":[{"name":"v","path":"/v"}]}`, "volumeMounts"},
	{`{"templateID":"base","mcp":{}}`, "mcp: running MCP servers is not available yet: leave it out"},
	{`{"templateID":"base","distributionScope":["node-1"]}`, "distributionScope"},
	{`{"templateID":"base","network":{"httpsPorts":[443,0]}}`, "network.httpsPorts: 0 is not a port from 1 to 65535"},
	{`{"templateID":"base","network":{"httpsPorts":[65536]}}`, "network.httpsPorts: 65536 is not a port"},
	{`{"templateID":"base","network":{"httpsPorts":[49983]}}`, "network.httpsPorts: 49983 is the port of the sandbox's own daemon"},
	{`{"templateID":"base","network":{"httpsPorts":["443"]}}`, `network.httpsPorts[0] must be a whole number, got "443"`},
	{`{"templateID":"base","network":{"httpsPorts":443}}`, "network.httpsPorts must be a list, got 443"},
	{`{"templateID":"base","network":{"httpsPorts":[` + strings.Repeat("443,", 1000) + `443]}}`, "network.httpsPorts has 1001 entries"},
	{`{"templateID":"base","network":{"ports":{"80":"open"}}}`, `network.ports[80] must be "public" or "private", got "open"`},
	{`{"templateID":"base","network":{"ports":{"80":""}}}`, `network.ports[80] must be "public" or "private", got ""`},
	{`{"templateID":"base","network":{"ports":{"80":true}}}`, "network.ports[80] must be a string, got true"},
	{`{"templateID":"base","network":{"ports":{"080":"private"}}}`, `network.ports: "080" is not a port`},
	{`{"templateID":"base","network":{"ports":{"http":"private"}}}`, `network.ports: "http" is not a port`},
	{`{"templateID":"base","network":{"ports":{"0":"private"}}}`, "network.ports: 0 is not a port"},
	{`{"templateID":"base","network":{"ports":{"49983":"public"}}}`, "network.ports: 49983 is the port of the sandbox's own daemon"},
	{`{"templateID":"base","network":{"ports":["80"]}}`, `network.ports must be an object, got a list`},
	{`{"templateID":"base","ports":{"80":"private"}}`, "ports has no effect here"},
}

func TestCreateRefusals(t *testing.T) {
	r := newRig(t)
	for _, test := range badCreates {
		for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
			refusal := r.send(keyA, "POST", path, test.body).want(http.StatusBadRequest, test.text)
			for _, private := range []string{"hunter2", "1234567"} {
				if strings.Contains(refusal.body, private) {
					t.Errorf("the refusal repeats a secret: %s", refusal.body)
				}
			}
		}
	}
	if n := r.engine.created(); n != 0 {
		t.Errorf("%d refused sandboxes were created", n)
	}
}

// TestCreateOrder: of several mistakes E2B reports the template first, then
// the timeout, then the network.
func TestCreateOrder(t *testing.T) {
	r := newRig(t)
	wrong := `"timeout":0,"network":{"denyOut":["x"]}`
	r.send(keyA, "POST", "/sandboxes", `{"templateID":"nope",`+wrong+`}`).want(http.StatusNotFound, `Template "nope" not found`)
	r.send(keyA, "POST", "/sandboxes", `{"templateID":"base",`+wrong+`}`).want(http.StatusBadRequest, "Timeout")
	r.send(keyA, "POST", "/sandboxes", `{"templateID":5,`+wrong+`}`).want(http.StatusBadRequest, "templateID")
}
