package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

const testKey = "e2b_0123456789abcdef0123456789abcdef01234567"

// answer is what a server says to one request.
type answer struct {
	status int
	header map[string]string
	body   string
}

// exchange is a server that says the given answers in turn and notes what it
// was asked.
type exchange struct {
	*httptest.Server
	asked   []string // "METHOD path?query body"
	headers []http.Header
}

func serve(t *testing.T, answers ...answer) *exchange {
	t.Helper()
	e := &exchange{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read request: %v", err)
		}
		e.asked = append(e.asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
		e.headers = append(e.headers, r.Header)
		if len(answers) == 0 {
			t.Errorf("unexpected request %s", e.asked[len(e.asked)-1])
			return
		}
		a := answers[0]
		answers = answers[1:]
		for name, value := range a.header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *exchange) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{APIURL: e.URL, SandboxURL: e.URL, APIKey: testKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The answers below are written as the server's specification has them, not as
// this module's types would encode them.
const (
	sandboxJSON = `{"sandboxID":"iabc","templateID":"base","clientID":"6532622b","envdVersion":"0.5.7",` +
		`"envdAccessToken":"tok","trafficAccessToken":null,"domain":"moat.test"}`
	detailJSON = `{"sandboxID":"iabc","templateID":"base","clientID":"6532622b","envdVersion":"0.5.7","state":"running",` +
		`"startedAt":"2026-11-21T10:00:00Z","endAt":"2026-11-21T10:05:00Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,` +
		`"metadata":{"k":"v"},"domain":null,"allowInternetAccess":false,` +
		`"network":{"allowOut":["1.1.1.1"]},"lifecycle":{"onTimeout":"kill","autoResume":false},"later":{"field":1}}`
	metricJSON = `[{"timestamp":"2026-11-21T10:00:00Z","timestampUnix":1795255200,"cpuCount":2,"cpuUsedPct":12.5,` +
		`"memUsed":1,"memTotal":2,"memCache":3,"diskUsed":4,"diskTotal":5}]`
	keyJSON      = `{"id":"k1","name":"ci","team":"default","prefix":"e2b_0123","createdAt":"2026-11-21T10:00:00Z"}`
	templateJSON = `{"id":"t1","names":["py"],"source":"/srv/py","sizeBytes":7,"cpuCount":1,"memoryMB":2,"diskSizeMB":3,"createdAt":"2026-11-21T10:00:00Z"}`
)

func TestCallsOnTheWire(t *testing.T) {
	domain, off, minute := "moat.test", false, int64(60)
	started := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	made := api.Sandbox{SandboxID: "iabc", TemplateID: "base", ClientID: "6532622b", EnvdVersion: "0.5.7", EnvdAccessToken: "tok", Domain: &domain}
	key := api.Key{ID: "k1", Name: "ci", Team: "default", Prefix: "e2b_0123", CreatedAt: started}
	template := api.Template{ID: "t1", Names: []string{"py"}, Source: "/srv/py", SizeBytes: 7, CPUCount: 1, MemoryMB: 2, DiskSizeMB: 3, CreatedAt: started}
	for _, c := range []struct {
		name   string
		call   func(context.Context, *client.Client) (any, error)
		want   string
		answer answer
		result any
	}{
		{"create", func(ctx context.Context, c *client.Client) (any, error) {
			return c.CreateSandbox(ctx, api.NewSandbox{
				TemplateID: "base", Timeout: &minute, AllowInternetAccess: &off,
				Network:  &api.Network{AllowOut: []string{"1.1.1.1"}},
				Metadata: map[string]string{"k": "v"}, EnvVars: map[string]string{"A": "b"},
			})
		}, `POST /v2/sandboxes {"templateID":"base","timeout":60,"allow_internet_access":false,"network":{"allowOut":["1.1.1.1"]},"metadata":{"k":"v"},"envVars":{"A":"b"}}`,
			answer{status: 201, body: sandboxJSON}, made},
		{"get", func(ctx context.Context, c *client.Client) (any, error) { return c.Sandbox(ctx, "iabc") },
			`GET /sandboxes/iabc`, answer{status: 200, body: detailJSON}, api.SandboxDetail{
				ListedSandbox: api.ListedSandbox{
					SandboxID: "iabc", TemplateID: "base", ClientID: "6532622b", EnvdVersion: "0.5.7", State: api.StateRunning,
					StartedAt: started, EndAt: started.Add(5 * time.Minute), CPUCount: 2, MemoryMB: 512, DiskSizeMB: 1024,
					Metadata: map[string]string{"k": "v"},
				},
				AllowInternetAccess: &off, Network: &api.Network{AllowOut: []string{"1.1.1.1"}},
				Lifecycle: api.Lifecycle{OnTimeout: "kill"},
			}},
		{"connect", func(ctx context.Context, c *client.Client) (any, error) {
			return c.Connect(ctx, "iabc", 59*time.Second+1)
		}, `POST /v2/sandboxes/iabc/connect {"timeout":60}`, answer{status: 200, body: sandboxJSON}, made},
		{"kill", func(ctx context.Context, c *client.Client) (any, error) { return nil, c.Kill(ctx, "i/../x") },
			`DELETE /sandboxes/i%2F..%2Fx`, answer{status: 204}, nil},
		{"timeout", func(ctx context.Context, c *client.Client) (any, error) { return nil, c.SetTimeout(ctx, "iabc", 0) },
			`POST /sandboxes/iabc/timeout {"timeout":0}`, answer{status: 204}, nil},
		{"network", func(ctx context.Context, c *client.Client) (any, error) {
			return nil, c.SetNetwork(ctx, "iabc", api.NetworkUpdate{Network: api.Network{DenyOut: []string{"0.0.0.0/0"}}, AllowInternetAccess: &off})
		}, `PUT /sandboxes/iabc/network {"denyOut":["0.0.0.0/0"],"allow_internet_access":false}`, answer{status: 204}, nil},
		{"metrics", func(ctx context.Context, c *client.Client) (any, error) {
			return c.Metrics(ctx, "iabc", time.Unix(5, 0), time.Unix(6, 999))
		}, `GET /sandboxes/iabc/metrics?end=6&start=5`, answer{status: 200, body: metricJSON}, []api.SandboxMetric{{
			Timestamp: started, TimestampUnix: 1795255200, CPUCount: 2, CPUUsedPct: 12.5,
			MemUsed: 1, MemTotal: 2, MemCache: 3, DiskUsed: 4, DiskTotal: 5,
		}}},
		{"link", func(ctx context.Context, c *client.Client) (any, error) {
			return c.Link(ctx, "iabc", 8080, 90*time.Second)
		}, `POST /sandboxes/iabc/links {"port":8080,"seconds":90}`, answer{status: 201, body: `{"url":"https://8080-iabc.moat.test/?l","expiresAt":"2026-11-21T10:00:00Z"}`},
			api.Link{URL: "https://8080-iabc.moat.test/?l", ExpiresAt: started}},
		{"link without a life", func(ctx context.Context, c *client.Client) (any, error) {
			return c.Link(ctx, "iabc", 8080, 0)
		}, `POST /sandboxes/iabc/links {"port":8080}`, answer{status: 201, body: `{"url":"u","expiresAt":"2026-11-21T10:00:00Z"}`},
			api.Link{URL: "u", ExpiresAt: started}},
		{"health", func(ctx context.Context, c *client.Client) (any, error) { return c.Health(ctx) },
			`GET /health`, answer{status: 200, body: `{"status":"ok","sandboxes":3}`}, api.Health{Status: "ok", Sandboxes: 3}},
		{"create key", func(ctx context.Context, c *client.Client) (any, error) {
			return c.CreateKey(ctx, api.NewKey{Name: "ci", Team: "default"})
		}, `POST /operator/keys {"name":"ci","team":"default"}`,
			answer{status: 201, body: strings.Replace(keyJSON, "{", `{"key":"e2b_00",`, 1)}, api.CreatedKey{Key: key, Secret: "e2b_00"}},
		{"list keys", func(ctx context.Context, c *client.Client) (any, error) { return c.Keys(ctx) },
			`GET /operator/keys`, answer{status: 200, body: "[" + keyJSON + "]"}, []api.Key{key}},
		{"delete key", func(ctx context.Context, c *client.Client) (any, error) { return nil, c.DeleteKey(ctx, "k1") },
			`DELETE /operator/keys/k1`, answer{status: 204}, nil},
		{"add template", func(ctx context.Context, c *client.Client) (any, error) {
			return c.AddTemplate(ctx, api.NewTemplate{Names: []string{"py"}, Image: "reg.test/py:3", Insecure: true})
		}, `POST /operator/templates {"names":["py"],"image":"reg.test/py:3","insecure":true}`, answer{status: 201, body: templateJSON}, template},
		{"list templates", func(ctx context.Context, c *client.Client) (any, error) { return c.Templates(ctx) },
			`GET /operator/templates`, answer{status: 200, body: "[" + templateJSON + "]"}, []api.Template{template}},
		{"delete template", func(ctx context.Context, c *client.Client) (any, error) { return nil, c.DeleteTemplate(ctx, "py") },
			`DELETE /operator/templates/py`, answer{status: 204}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := serve(t, c.answer)
			got, err := c.call(t.Context(), server.client(t))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.result) {
				t.Errorf("got %+v\nwant %+v", got, c.result)
			}
			if len(server.asked) != 1 || server.asked[0] != c.want {
				t.Errorf("asked %q\nwant  %q", server.asked, c.want)
			}
			if key := server.headers[0].Get("X-API-Key"); key != testKey {
				t.Errorf("key sent: %q", key)
			}
		})
	}
}

func TestListGoesFromPageToPage(t *testing.T) {
	page := func(next string, ids ...string) answer {
		var listed []api.ListedSandbox
		for _, id := range ids {
			listed = append(listed, api.ListedSandbox{SandboxID: id})
		}
		body, _ := json.Marshal(listed)
		return answer{status: 200, header: map[string]string{"X-Next-Token": next}, body: string(body)}
	}
	server := serve(t, page("t/2", "ia", "ib"), page("t3", "ic"), page("", "id"))
	filter := client.Filter{
		Metadata: map[string]string{"k 1": "v&2"}, States: []api.State{api.StateRunning, api.StatePaused},
		Template: "base", PageSize: 2,
	}
	var ids []string
	for s, err := range server.client(t).Sandboxes(t.Context(), filter) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.SandboxID)
	}
	if want := []string{"ia", "ib", "ic", "id"}; !reflect.DeepEqual(ids, want) {
		t.Errorf("got %v, want %v", ids, want)
	}
	// E2B's SDKs were seen to send the metadata exactly so.
	first := "GET /v2/sandboxes?limit=2&metadata=k%2525201%3Dv%2525262&state=running%2Cpaused&template=base"
	want := []string{first, strings.Replace(first, "&state", "&nextToken=t%2F2&state", 1), strings.Replace(first, "&state", "&nextToken=t3&state", 1)}
	if !reflect.DeepEqual(server.asked, want) {
		t.Errorf("asked %q\nwant  %q", server.asked, want)
	}
}

func TestListAsksForNoPageThatNobodyReads(t *testing.T) {
	server := serve(t, answer{status: 200, header: map[string]string{"X-Next-Token": "t2"}, body: `[{"sandboxID":"ia"}]`})
	for range server.client(t).Sandboxes(t.Context(), client.Filter{}) {
		break
	}
	if len(server.asked) != 1 {
		t.Errorf("asked %q", server.asked)
	}
}

func TestListEndsWithAnError(t *testing.T) {
	server := serve(t,
		answer{status: 200, header: map[string]string{"X-Next-Token": "t2"}, body: `[{"sandboxID":"ia"}]`},
		answer{status: 400, body: `{"code":400,"message":"Invalid next token"}`})
	var seen []string
	for s, err := range server.client(t).Sandboxes(t.Context(), client.Filter{}) {
		seen = append(seen, fmt.Sprint(s.SandboxID, " ", err))
	}
	if want := []string{"ia <nil>", " list sandboxes: Invalid next token"}; !reflect.DeepEqual(seen, want) {
		t.Errorf("got %q, want %q", seen, want)
	}
}

func TestRefusalsAreErrors(t *testing.T) {
	for _, c := range []struct {
		answer answer
		want   client.Error
	}{
		{answer{status: 404, body: `{"code":404,"message":"no such sandbox"}`}, client.Error{Status: 404, Message: "no such sandbox"}},
		{answer{status: 429, body: `{"code":429,"message":"full","error_code":"sandbox_capacity_unavailable"}`},
			client.Error{Status: 429, Code: "sandbox_capacity_unavailable", Message: "full"}},
		{answer{status: 502, body: `{"sandboxId":"iabc","message":"The sandbox was not found","code":502}`},
			client.Error{Status: 502, Message: "The sandbox was not found"}},
		{answer{status: 503, body: "<html>busy</html>"}, client.Error{Status: 503, Message: "server answered 503 Service Unavailable"}},
		{answer{status: 500}, client.Error{Status: 500, Message: "server answered 500 Internal Server Error"}},
		{answer{status: 418, body: `{"code":"teapot","message":"x"}`}, client.Error{Status: 418, Message: "server answered 418 I'm a teapot"}},
	} {
		_, err := serve(t, c.answer).client(t).Sandbox(t.Context(), "iabc")
		var refused *client.Error
		if !errors.As(err, &refused) || *refused != c.want {
			t.Errorf("%+v: got %#v, want %#v", c.answer, refused, c.want)
		}
		if want := "get sandbox: " + c.want.Message; err == nil || err.Error() != want {
			t.Errorf("%+v: got %q, want %q", c.answer, err, want)
		}
	}
}

func TestUnreadableAnswersAreErrors(t *testing.T) {
	for _, body := range []string{"", "{", `{"startedAt":"yesterday"}`, "[]"} {
		if _, err := serve(t, answer{status: 200, body: body}).client(t).Sandbox(t.Context(), "iabc"); err == nil {
			t.Errorf("%q: no error", body)
		}
	}
}

// A redirect would take the key along.
func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := serve(t)
	server := serve(t, answer{status: 307, header: map[string]string{"Location": elsewhere.URL}})
	_, err := server.client(t).Health(t.Context())
	var refused *client.Error
	if !errors.As(err, &refused) || refused.Status != http.StatusTemporaryRedirect {
		t.Errorf("got %v", err)
	}
	if len(elsewhere.asked) != 0 {
		t.Errorf("followed: %q", elsewhere.asked)
	}
}

func TestTheEndOfAContextIsRecognisable(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := serve(t).client(t).Kill(ctx, "iabc"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "moat.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, sent := r.Header["X-Api-Key"]; sent || r.Host != "localhost" {
			t.Errorf("host %q, headers %v", r.Host, r.Header)
		}
		_, _ = io.WriteString(w, `{"status":"ok"}`)
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")

	c, err := client.New(client.Config{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if health, err := c.Health(t.Context()); err != nil || health.Status != "ok" {
		t.Errorf("got %+v, %v", health, err)
	}
}

func TestBadConfigurations(t *testing.T) {
	for _, c := range []struct {
		config client.Config
		want   string
	}{
		{client.Config{APIKey: testKey}, "client: one of APIURL, Domain and Socket is needed"},
		{client.Config{APIURL: "127.0.0.1:80"}, "client: APIURL: "},
		{client.Config{APIURL: "ftp://x"}, `client: APIURL: "ftp://x" is not an http or https base URL`},
		{client.Config{APIURL: "http://u:pass@x"}, `client: APIURL: "http://u:xxxxx@x" is not`},
		{client.Config{APIURL: "http://x", SandboxURL: "http://y/?a=b"}, `client: SandboxURL: `},
		{client.Config{Socket: "/s", APIURL: "http://x"}, "client: Socket excludes"},
		{client.Config{Socket: "/s", HTTP: http.DefaultClient}, "client: Socket excludes"},
	} {
		if _, err := client.New(c.config); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", c.config, err, c.want)
		}
	}
}

func TestPublicNames(t *testing.T) {
	domain, empty := "moat.test:8443", ""
	for _, c := range []struct {
		config client.Config
		domain *string
		want   string
	}{
		{client.Config{Domain: "own.test"}, &domain, "https://8080-iabc.moat.test:8443"},
		{client.Config{Domain: "own.test"}, nil, "https://8080-iabc.own.test"},
		{client.Config{Domain: "own.test", APIURL: "http://127.0.0.1:1"}, &empty, "http://8080-iabc.own.test"},
	} {
		made, err := client.New(c.config)
		if err != nil {
			t.Fatal(err)
		}
		if got := made.Open(api.Sandbox{SandboxID: "iabc", Domain: c.domain}).URL(8080); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func TestNothingShowsSecrets(t *testing.T) {
	c, err := client.New(client.Config{APIURL: "http://x.test", APIKey: testKey})
	if err != nil {
		t.Fatal(err)
	}
	box := c.Open(api.Sandbox{SandboxID: "iabc", EnvdAccessToken: "token-of-the-daemon"})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, v := range []any{c, *c, box, *box} {
			if shown := fmt.Sprintf(verb, v); strings.Contains(shown, testKey) || strings.Contains(shown, "token-of-the-daemon") {
				t.Errorf("%s of %T shows a secret", verb, v)
			}
		}
	}
}
