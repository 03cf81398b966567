package control

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

func TestUnknownRoutes(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{
		"/", "/nope", "/sandboxes/", "/v2", "/v3/sandboxes", "//sandboxes", "/sandboxes//x", "/x/../sandboxes", "/./health", "/health/", "/HEALTH",
	} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			r.send(keyA, method, path, "").want(http.StatusNotFound, "No such route: ")
		}
	}
}

func TestWrongMethods(t *testing.T) {
	r := newRig(t)
	for request, allow := range map[string]string{
		"DELETE /sandboxes":          "GET, HEAD, POST, OPTIONS",
		"PUT /v2/sandboxes":          "GET, HEAD, POST, OPTIONS",
		"POST /health":               "GET, HEAD, OPTIONS",
		"PATCH /sandboxes/i1":        "GET, HEAD, DELETE, OPTIONS",
		"GET /sandboxes/i1/connect":  "POST, OPTIONS",
		"POST /sandboxes/i1/network": "GET, HEAD, PUT, PATCH, OPTIONS",
		"GET /templates/t1":          "DELETE, OPTIONS",
		"BREW /sandboxes":            "GET, HEAD, POST, OPTIONS",
	} {
		method, path, _ := strings.Cut(request, " ")
		got := r.send(keyA, method, path, "").want(http.StatusMethodNotAllowed, method)
		if got.header.Get("Allow") != allow {
			t.Errorf("%s: Allow %q, want %q", request, got.header.Get("Allow"), allow)
		}
	}
}

func TestHead(t *testing.T) {
	r := newRig(t)
	got := r.send("", "HEAD", "/health", "")
	if got.status != http.StatusOK || got.body != "" {
		t.Errorf("HEAD /health: %d %q", got.status, got.body)
	}
}

func TestCORS(t *testing.T) {
	r := newRig(t)
	preflight := r.send("", "OPTIONS", "/v2/sandboxes", "").want(http.StatusNoContent)
	for header, parts := range map[string][]string{
		"Access-Control-Allow-Origin":   {"*"},
		"Access-Control-Allow-Methods":  {"GET", "POST", "PUT", "DELETE"},
		"Access-Control-Allow-Headers":  {"*", "Authorization", "X-API-Key", "X-Team-ID"},
		"Access-Control-Expose-Headers": {"X-Next-Token", "X-Total-Running", "Retry-After", "RateLimit-Limit", "Moat-Network-Generation"},
	} {
		for _, part := range parts {
			if !strings.Contains(preflight.header.Get(header), part) {
				t.Errorf("%s is %q, want %s in it", header, preflight.header.Get(header), part)
			}
		}
	}
	if preflight.header.Get("Access-Control-Allow-Credentials") != "" {
		t.Error("pages of any origin may send credentials")
	}
	// A page can read errors too.
	if got := r.send("", "GET", "/sandboxes", "").want(http.StatusUnauthorized); got.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Error("a 401 is hidden from pages")
	}
}

func (r *rig) post(path string, body io.Reader) *http.Request {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), "POST", r.public.URL+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set(api.HeaderAPIKey, keyA)
	return request
}

func TestBodySizes(t *testing.T) {
	r := newRig(t)
	padded := func(size int) io.Reader {
		body := []byte(`{"templateID":"base"`)
		body = append(body, bytes.Repeat([]byte(" "), size-len(body)-1)...)
		return bytes.NewReader(append(body, '}'))
	}
	r.do(r.post("/sandboxes", padded(16<<20))).want(http.StatusCreated)
	r.do(r.post("/sandboxes", padded(16<<20+1))).want(http.StatusRequestEntityTooLarge, "larger than 16 MiB")

	chunked := r.post("/sandboxes", io.MultiReader(strings.NewReader(`{"templateID":`), strings.NewReader(`"base"}`)))
	chunked.ContentLength = -1
	r.do(chunked).want(http.StatusCreated)
	endless := r.post("/sandboxes", padded(40<<20))
	endless.ContentLength = -1
	r.do(endless).want(http.StatusRequestEntityTooLarge, "larger than 16 MiB")

	// Without a key nobody's body is read.
	foreign := r.post("/sandboxes", padded(1<<20))
	foreign.Header.Del(api.HeaderAPIKey)
	r.do(foreign).want(http.StatusUnauthorized)

	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	fmt.Fprint(w, `{"templateID":"base"}`)
	w.Close()
	r.do(r.post("/sandboxes", &packed)).want(http.StatusBadRequest, "not valid JSON")

	// Deeply nested JSON is refused, not followed until the stack ends.
	r.do(r.post("/sandboxes", strings.NewReader(`{"templateID":"base","x":`+strings.Repeat("[", 8<<20)))).want(http.StatusBadRequest, "not valid JSON")
	r.send("", "GET", "/health", "").want(http.StatusOK)
}

// TestSlowBody: a body that never comes holds nothing for long, with a key or
// without, whether or not the route wants one.
func TestSlowBody(t *testing.T) {
	r := newRig(t)
	r.api.bodyTimeout = 50 * time.Millisecond
	for request, status := range map[string]int{
		"POST /sandboxes HTTP/1.1\r\nX-API-Key: " + keyA: http.StatusRequestTimeout,
		"POST /sandboxes HTTP/1.1":                       http.StatusUnauthorized,
		"POST /nope HTTP/1.1":                            http.StatusNotFound,
		"GET /health HTTP/1.1":                           http.StatusOK,
	} {
		conn, err := net.Dial("tcp", r.public.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", request)
		reader := bufio.NewReader(conn)
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Errorf("%s: %v", request, err)
			continue
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		answer{t, response.StatusCode, response.Header, string(body)}.want(status)
		if _, err := reader.ReadByte(); err != io.EOF {
			t.Errorf("%s: the connection stays open: %v", request, err)
		}
	}
}

// TestBodyDeadlineEndsWithTheBody: it bounds the body, not what is done with it.
func TestBodyDeadlineEndsWithTheBody(t *testing.T) {
	r := newRig(t)
	r.api.bodyTimeout = 500 * time.Millisecond
	wait := func(ctx context.Context) {
		select {
		case <-ctx.Done():
			t.Errorf("the request was cancelled: %v", context.Cause(ctx))
		case <-time.After(2 * r.api.bodyTimeout):
		}
	}
	r.engine.hook = wait
	id := r.create(keyA, "").SandboxID
	r.engine.samples[id] = nil
	r.send(keyA, "GET", "/sandboxes/"+id+"/metrics", "").want(http.StatusOK)
}

// TestErrors: every error the engine may return has one answer.
func TestErrors(t *testing.T) {
	for name, test := range map[string]struct {
		err     error
		status  int
		code    string
		message string
		retry   string
	}{
		"team limit":       {sandbox.ErrTeamLimit, 429, "", "maximum number of concurrent sandboxes", ""},
		"no capacity":      {sandbox.ErrNoCapacity, 503, api.CodeCapacity, "Failed to place sandbox", "5"},
		"template gone":    {sandbox.ErrTemplateNotFound, 404, "", `Template "base" not found`, ""},
		"template damaged": {sandbox.ErrTemplateBroken, 500, api.CodeCreateFailed, "template is damaged", ""},
		"disk full":        {store.ErrFull, 507, "", "disk is full", ""},
		"bare ENOSPC":      {syscall.ENOSPC, 500, api.CodeInternal, "Internal server error", ""},
		"too slow":         {context.DeadlineExceeded, 504, api.CodeTimeout, "not ready in time", ""},
		"network":          {&policy.EntryError{Field: "denyOut", Entry: "x", Reason: "bad"}, 400, "", "invalid denied CIDR x: bad", ""},
		"record missing":   {store.ErrNotFound, 500, api.CodeInternal, "Internal server error", ""},
		"other":            {errors.New("secret detail of the host"), 500, api.CodeInternal, "Internal server error, request ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.engine.fails = errors.Join(fmt.Errorf("create sandbox: %w", test.err), errors.New("and cleaning up failed"))
			got := r.send(keyA, "POST", "/v2/sandboxes", `{"templateID":"base"}`).want(test.status, test.message)
			failure := decodeAs[api.Error](got)
			if failure.ErrorCode != test.code || got.header.Get("Retry-After") != test.retry {
				t.Errorf("%s, Retry-After %q; want code %q, Retry-After %q", got.body, got.header.Get("Retry-After"), test.code, test.retry)
			}
			if strings.Contains(got.body, "secret detail") || strings.Contains(got.body, "cleaning up") {
				t.Errorf("the client sees the host's business: %s", got.body)
			}
			if test.status < 500 || test.status == 503 {
				if r.log.Len() > 0 {
					t.Errorf("logged: %s", r.log)
				}
				return
			}
			if !strings.Contains(r.log.String(), "cleaning up failed") {
				t.Errorf("the log does not explain it: %s", r.log)
			}
			if _, id, internal := strings.Cut(failure.Message, "request "); internal && !strings.Contains(r.log.String(), id) {
				t.Errorf("the log does not have request %s: %s", id, r.log)
			}
		})
	}
}

// TestPanic: one broken request does not take the server along.
func TestPanic(t *testing.T) {
	r := newRig(t)
	r.engine.crash = true
	r.send("", "GET", "/health", "").want(http.StatusInternalServerError, "Internal server error, request ")
	if !strings.Contains(r.log.String(), "count lost its way") || !strings.Contains(r.log.String(), "sandboxes.go") {
		t.Errorf("the log does not say where: %s", r.log)
	}
	r.engine.crash = false
	r.send("", "GET", "/health", "").want(http.StatusOK)
}

func TestStoreFailure(t *testing.T) {
	r := newRig(t)
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	r.send(keyA, "GET", "/sandboxes", "").want(http.StatusInternalServerError)
	r.operate("GET", "/operator/keys", "").want(http.StatusInternalServerError)
}

func TestInvalidUTF8IsAnswered(t *testing.T) {
	r := newRig(t)
	r.send(keyA, "GET", "/v2/sandboxes?order=%ff%fe", "").want(http.StatusBadRequest, "order must be asc or desc")
	r.send(keyA, "GET", "/nope/%ff", "").want(http.StatusNotFound)
}

func TestNewRefuses(t *testing.T) {
	good := newRig(t).api.Config
	for name, spoil := range map[string]func(*Config){
		"no store":      func(c *Config) { c.Store = nil },
		"no engine":     func(c *Config) { c.Engine = nil },
		"no templates":  func(c *Config) { c.Templates = nil },
		"no check":      func(c *Config) { c.Compile = nil },
		"no logger":     func(c *Config) { c.Logger = nil },
		"no timeout":    func(c *Config) { c.MaxTimeout = 0 },
		"no scheme":     func(c *Config) { c.Scheme = "" },
		"other scheme":  func(c *Config) { c.Scheme = "ftp" },
		"E2B's domain":  func(c *Config) { c.Domain = "e2b.app" },
		"E2B's, louder": func(c *Config) { c.Domain = "E2B.dev" },
	} {
		config := good
		spoil(&config)
		if _, err := New(config); err == nil || !strings.HasPrefix(err.Error(), "control: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
