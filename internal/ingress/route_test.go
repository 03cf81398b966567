package ingress

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

func TestRouting(t *testing.T) {
	w := newWorld(t)
	name := func(s string) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, s+" "+r.Host) }
	}
	one, two := w.serve(name("one")), w.serve(name("two"))
	w.each(t, func(t *testing.T, c client) {
		for _, x := range []struct {
			what, host, id, port, want string
		}{
			{what: "own host", host: one.host(), want: "one " + one.host()},
			{what: "other sandbox, same connection", host: two.host(), want: "two " + two.host()},
			{what: "headers on a sandbox host count for nothing", host: one.host(), id: two.ID, port: strconv.Itoa(int(two.port)), want: "one " + one.host()},
			{what: "shared name", host: "sandbox." + testDomain, id: two.ID, port: strconv.Itoa(int(two.port)), want: "two sandbox." + testDomain},
			{what: "localhost", host: "localhost:1234", id: one.ID, port: strconv.Itoa(int(one.port)), want: "one localhost:1234"},
			{what: "address", host: "127.0.0.1", id: one.ID + "-6532622b", port: strconv.Itoa(int(one.port)), want: "one 127.0.0.1"},
			{what: "API", host: "api." + testDomain, want: "api api." + testDomain},
			{what: "API ignores headers", host: "api." + testDomain, id: one.ID, port: "80", want: "api api." + testDomain},
			{what: "any other host", host: "elsewhere.example", want: "api elsewhere.example"},
			{what: "shared name without headers", host: "localhost", want: "api localhost"},
		} {
			req := c.request(t, "GET", x.host, "/", nil)
			if x.id != "" {
				req.Header.Set("E2b-Sandbox-Id", x.id)
				req.Header.Set("E2b-Sandbox-Port", x.port)
			}
			if got := readAll(t, c.do(t, req).Body); got != x.want {
				t.Errorf("%s: got %q, want %q", x.what, got, x.want)
			}
		}
	})
}

func TestAttack36RoutingTricks(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(http.ResponseWriter, *http.Request) { t.Error("the sandbox was contacted") })
	port := strconv.Itoa(int(b.port))
	for _, x := range []struct {
		what, host string
		ids, ports []string
		code, text string
	}{
		{what: "port missing", host: "localhost", ids: []string{b.ID}, code: "missing_header", text: "missing header"},
		{what: "id missing", host: "127.0.0.1", ports: []string{port}, code: "missing_header", text: "E2b-Sandbox-Id is not there"},
		{what: "empty id", host: "localhost", ids: []string{""}, ports: []string{port}, code: "bad_host", text: "sandbox ID"},
		{what: "bad id", host: "localhost", ids: []string{"../x"}, ports: []string{port}, code: "bad_host", text: "sandbox ID"},
		{what: "port 0", host: "localhost", ids: []string{b.ID}, ports: []string{"0"}, code: "bad_host", text: "sandbox port"},
		{what: "port 65536", host: "localhost", ids: []string{b.ID}, ports: []string{"65536"}, code: "bad_host", text: "sandbox port"},
		{what: "leading zero", host: "localhost", ids: []string{b.ID}, ports: []string{"0" + port}, code: "bad_host", text: "sandbox port"},
		{what: "two ids", host: "localhost", ids: []string{b.ID, b.ID}, ports: []string{port}, code: "bad_host", text: "2 times"},
		{what: "two ports", host: "localhost", ids: []string{b.ID}, ports: []string{port, port}, code: "bad_host", text: "2 times"},
		{what: "bad host", host: "80x-" + b.ID + "." + testDomain, code: "bad_host", text: "invalid sandbox port \"80x\""},
		{what: "foreign domain", host: port + "-" + b.ID + ".example.com", code: "bad_host", text: "not below"},
	} {
		t.Run(x.what, func(t *testing.T) {
			c := w.client("h1")
			req := c.request(t, "GET", x.host, "/", nil)
			req.Header["E2b-Sandbox-Id"] = x.ids
			req.Header["E2b-Sandbox-Port"] = x.ports
			got := wantFailure(t, c.do(t, req), 400, x.code)
			if !strings.Contains(got["message"].(string), x.text) || got["error"] != "bad request" {
				t.Errorf("got %v, want a message with %q", got, x.text)
			}
		})
	}
}

// Attack 35: the guest daemon's control paths, however they are written.
func TestAttack35ControlPaths(t *testing.T) {
	w := newWorld(t)
	guest := newBox(49983)
	w.serveOn(guest, func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "guest "+r.URL.Path) })
	app := w.serve(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "app "+r.URL.Path) })
	for _, path := range []string{
		"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade",
		"//init", "/./init", "/files/../init", "/x/y/../../init", "/init/", "/init/more", "/init?x=1", "/../init",
		"/%69nit", "/%2finit", "/x%2f..%2finit", "/x/%2e%2e/init", "/%2e/init", "//%2F//init",
	} {
		w.each(t, func(t *testing.T, c client) {
			for _, method := range []string{"GET", "POST", "OPTIONS"} {
				asked := w.boxes.asked.Load()
				got := wantFailure(t, c.do(t, c.request(t, method, guest.host(), path, nil)), 404, "reserved_path")
				if w.boxes.asked.Load() != asked {
					t.Errorf("%s %s: the sandbox was looked up", method, path)
				}
				if got["message"] != "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL" || got["path"] == "" {
					t.Errorf("%s %s: got %v", method, path, got)
				}
			}
		})
	}
	c := w.client("h1")
	for _, path := range []string{"/", "/initial", "/files", "/x/init", "/INIT", "/%2569nit"} {
		if got := readAll(t, c.get(t, guest.host(), path).Body); !strings.HasPrefix(got, "guest /") {
			t.Errorf("%s: got %q", path, got)
		}
	}
	if got := readAll(t, c.get(t, app.host(), "/init").Body); got != "app /init" {
		t.Errorf("another port: got %q", got)
	}
	// By header on a shared host the path is just as reserved.
	req := c.request(t, "POST", "localhost", "/init", nil)
	req.Header.Set("E2b-Sandbox-Id", guest.ID)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	wantFailure(t, c.do(t, req), 404, "reserved_path")
}

func TestUnknownSandbox(t *testing.T) {
	w := newWorld(t)
	w.each(t, func(t *testing.T, c client) {
		got := wantFailure(t, c.get(t, "8080-"+someID+"."+testDomain, "/"), 502, "sandbox_not_found")
		want := map[string]any{"sandboxId": someID, "message": "The sandbox was not found", "code": 502.0,
			"error_code": "sandbox_not_found", "error": "bad gateway"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	if n := len(w.in.upstreams); n != 0 {
		t.Errorf("%d upstreams kept for unknown ids", n)
	}
}

func TestIncompleteTargetIsUnknown(t *testing.T) {
	w := newWorld(t)
	complete := w.serve(func(http.ResponseWriter, *http.Request) { t.Error("the sandbox was contacted") })
	c := w.client("h1")
	for what, spoil := range map[string]func(*Target){
		"no Done":     func(t *Target) { t.Done = nil },
		"no address":  func(t *Target) { t.Addr = Target{}.Addr },
		"another one": func(t *Target) { t.ID = someID },
	} {
		t.Run(what, func(t *testing.T) {
			broken := *complete
			spoil(&broken.Target)
			w.boxes.mu.Lock()
			w.boxes.known[complete.ID] = broken.Target
			w.boxes.mu.Unlock()
			wantFailure(t, c.get(t, complete.host(), "/"), 502, "sandbox_not_found")
		})
	}
}

func TestMethods(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Saw", r.Method+" "+r.RequestURI)
	})
	w.each(t, func(t *testing.T, c client) {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"} {
			if got := c.do(t, c.request(t, method, b.host(), "/x", nil)).Header.Get("X-Saw"); got != method+" /x" {
				t.Errorf("%s arrived as %q", method, got)
			}
		}
	})
}
