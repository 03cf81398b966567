package ingress

import (
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
)

func (b *box) path() string { return "/sandbox/" + b.ID + "/" + portText(b) }

func TestPathRoute(t *testing.T) {
	w := newWorld(t)
	b := w.serve(tell)
	w.each(t, func(t *testing.T, c client) {
		for _, host := range []string{"localhost", "127.0.0.1:80", "[::1]", "sandbox." + testDomain, "api." + testDomain, "elsewhere.example"} {
			for sent, want := range map[string]string{
				"/": "/", "/a/b?c=d": "/a/b?c=d", "/?": "/?", "//a": "//a", "/a%2Fb;c": "/a%2Fb;c",
				"/a/../b": "/a/../b", "/a//b/": "/a//b/", "/sandbox/x/1/": "/sandbox/x/1/", "/%F0%9F": "/%F0%9F", "/?%zz": "/?%zz",
			} {
				s := ask(t, c, c.request(t, "GET", host, b.path()+sent, nil))
				if s.URI != want || s.Header.Get("X-Forwarded-Prefix") != b.path() || s.Host != host {
					t.Errorf("%s%s: app saw %s, Host %s, prefix %q", host, sent, s.URI, s.Host, s.Header.Get("X-Forwarded-Prefix"))
				}
			}
		}
		if s := ask(t, c, c.request(t, "GET", b.host(), b.path()+"/", nil)); s.URI != b.path()+"/" || s.Header["X-Forwarded-Prefix"] != nil {
			t.Errorf("on the sandbox's own host: app saw %+v", s)
		}
		if s := ask(t, c, c.request(t, "POST", "localhost", b.path()+"?a=b", strings.NewReader("x"))); s.URI != "/?a=b" || s.Body != "x" {
			t.Errorf("without the last slash: app saw %+v", s)
		}
		resp := c.get(t, "localhost", b.path()+"?a=b")
		if to := resp.Header.Get("Location"); resp.StatusCode != http.StatusTemporaryRedirect || to != b.path()+"/?a=b" {
			t.Errorf("without the last slash: got %d to %s", resp.StatusCode, to)
		}
		byHeader := c.request(t, "GET", "localhost", "/sandbox/x/0/", nil)
		byHeader.Header.Set("E2b-Sandbox-Id", b.ID)
		byHeader.Header.Set("E2b-Sandbox-Port", portText(b))
		if s := ask(t, c, byHeader); s.URI != "/sandbox/x/0/" {
			t.Errorf("headers choose, but the app saw %+v", s)
		}
	})
}

// Attack 36: a path that names a sandbox in any but the one way is refused.
func TestAttack36PathTricks(t *testing.T) {
	w := newWorld(t)
	b := w.serve(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the sandbox was contacted for %s", r.RequestURI)
	})
	id, port := b.ID, portText(b)
	for _, sent := range []string{
		"/sandbox/", "/sandbox/" + id, "/sandbox/" + id + "/", "/sandbox//" + port + "/", "/sandbox//" + id + "/" + port + "/",
		"/sandbox/" + id + "/0/", "/sandbox/" + id + "/65536/", "/sandbox/" + id + "/0" + port + "/", "/sandbox/" + id + "/-1/",
		"/sandbox/" + id + "/+" + port + "/", "/sandbox/" + id + "/http/", "/sandbox/" + id + "//" + port, "/sandbox/" + id + "/%38080/",
		"/sandbox/" + strings.ToUpper(id) + "/" + port + "/", "/sandbox/" + id + "-a-b/" + port + "/", "/sandbox/" + id + "." + testDomain + "/" + port + "/",
		"/sandbox/%69" + id[1:] + "/" + port + "/", "/sandbox/" + id + "%2F" + port + "/", "/sandbox/./" + id + "/" + port + "/",
		"/sandbox/../sandbox/" + id + "/" + port + "/", "/sandbox/" + id + ";x/" + port + "/", "/sandbox/" + id + "/" + port + "x/",
		"/sandbox/" + id + "/" + port + "%00/", "/sandbox/" + id + "/" + port + "/..", "/sandbox/" + id + "/" + port + "/../",
		"/sandbox/" + id + "/" + port + "/../../x/1/", "/sandbox/" + id + "/" + port + "/a/../../b", "/sandbox/" + id + "/" + port + "/%2e%2e/b",
		"/sandbox/" + id + "/" + port + "/.%2E/b", "/sandbox/" + id + "/" + port + "/..%2Fb", "/sandbox/" + id + "/" + port + "/..%5Cb",
		"/sandbox/" + id + "/" + port + "/a%2Fb/../../c", "/sandbox/" + id + "/" + port + "/./../c", "/sandbox/" + id + "/" + port + "//../c",
	} {
		w.each(t, func(t *testing.T, c client) {
			req := c.request(t, "GET", "localhost", "/", nil)
			req.URL.Opaque = "//localhost" + sent // as it is
			wantFailure(t, c.do(t, req), 400, "bad_path")
		})
	}
	c := w.client("h1")
	for _, sent := range []string{"/sandbox", "/sandboxes", "/Sandbox/" + id + "/" + port + "/", "/x/../sandbox/" + id + "/" + port + "/", "//sandbox/" + id + "/" + port + "/"} {
		if got := readAll(t, c.get(t, "localhost", sent).Body); got != "api localhost" {
			t.Errorf("%s: got %q, want the API's answer", sent, got)
		}
	}
}

func TestPathRouteIsAsPrivate(t *testing.T) {
	w := newWorld(t)
	b := w.servePrivate(tell)
	guest := newBox(49983)
	w.serveOn(guest, tell)
	w.each(t, func(t *testing.T, c client) {
		for _, end := range []string{"", "/", "/a"} {
			wantFailure(t, c.get(t, "localhost", b.path()+end), 403, "traffic_token_missing")
		}
		req := c.request(t, "GET", "localhost", b.path()+"/a", nil)
		req.Header.Set("E2b-Traffic-Access-Token", b.Token.Reveal())
		if s := ask(t, c, req); s.URI != "/a" || s.Header["E2b-Traffic-Access-Token"] != nil {
			t.Errorf("app saw %+v", s)
		}
		for _, end := range []string{"/init", "//init", "/x/../init", "/%69nit", "/init/"} {
			got := wantFailure(t, c.get(t, "localhost", guest.path()+end), 404, "reserved_path")
			if strings.HasPrefix(got["path"].(string), "/sandbox") {
				t.Errorf("%s: got %v", end, got)
			}
		}
		wantFailure(t, c.get(t, "localhost", "/sandbox/"+someID+"/80/"), 502, "sandbox_not_found")
	})
}

func TestAnswersAreConfined(t *testing.T) {
	w := newWorld(t)
	var answer http.Header
	b := newBox(0)
	b.MaskHost = "app.internal:${PORT}"
	w.serveOn(b, func(rw http.ResponseWriter, r *http.Request) {
		for name, values := range answer {
			rw.Header()[name] = values
		}
		rw.WriteHeader(http.StatusFound)
	})
	c := w.client("h1")
	masked := "app.internal:" + portText(b)
	for location, want := range map[string]string{
		"/":                                "PREFIX/",
		"/a?b=/c#d":                        "PREFIX/a?b=/c#d",
		"":                                 "",
		"a/b":                              "a/b",
		"../a":                             "../a",
		"?a":                               "?a",
		"#a":                               "#a",
		"http://localhost/a":               "PREFIX/a",
		"https://localhost/a?b":            "PREFIX/a?b",
		"http://LOCALHOST":                 "PREFIX/",
		"http://localhost?a":               "PREFIX/?a",
		"//localhost/a":                    "PREFIX/a",
		"http://" + masked + "/a":          "PREFIX/a",
		"http://localhost//evil.example/":  "PREFIX//evil.example/",
		"/\\evil.example/":                 "PREFIX/\\evil.example/",
		"http://localhost:81/a":            "http://localhost:81/a",
		"https://elsewhere.example/a":      "https://elsewhere.example/a",
		"//elsewhere.example/a":            "//elsewhere.example/a",
		"mailto:me@localhost":              "mailto:me@localhost",
		"PREFIX/a":                         "PREFIX/a",
		"PREFIX":                           "PREFIX",
		"PREFIXa/b":                        "PREFIXPREFIXa/b",
		"http://localhostPREFIX/a?b":       "PREFIX/a?b",
		"http://localhost@evil.example/a":  "http://localhost@evil.example/a",
		"http://localhost:80@evil.example": "http://localhost:80@evil.example",
	} {
		full := func(s string) string { return strings.ReplaceAll(s, "PREFIX", b.path()) }
		answer = http.Header{"Location": {full(location)}}
		if got := c.get(t, "localhost", b.path()+"/x").Header.Get("Location"); got != full(want) {
			t.Errorf("Location %s became %s, want %s", full(location), got, full(want))
		}
		if got := c.get(t, b.host(), "/x").Header.Get("Location"); got != full(location) {
			t.Errorf("Location %s became %s on the sandbox's own host", full(location), got)
		}
	}
	for cookie, want := range map[string]string{
		"a=b":                                    "a=b",
		"a=b; Path=/":                            "a=b; Path=PREFIX/",
		"a=b; path=/c; Secure":                   "a=b; Path=PREFIX/c; Secure",
		"a=b; Path=/; Path=/c":                   "a=b; Path=PREFIX/; Path=PREFIX/c",
		"a=b;Path= / ;HttpOnly":                  "a=b; Path=PREFIX/;HttpOnly",
		"a=b; Path=PREFIX/c":                     "a=b; Path=PREFIX/c",
		"a=b; Path=PREFIXc":                      "a=b; Path=PREFIXPREFIXc",
		"a=b; Path=c":                            "a=b; Path=c",
		"a=b; Path=":                             "a=b; Path=",
		"a=b; Domain=localhost; SameSite=None":   "a=b; SameSite=None",
		"a=b; DOMAIN = .localhost ; Max-Age=1":   "a=b; Max-Age=1",
		"Path=/; HttpOnly":                       "Path=/; HttpOnly",
		"a=\"x; Path=/\"; Expires=Wed, 1 Jan 20": "a=\"x; Path=PREFIX/\"; Expires=Wed, 1 Jan 20",
	} {
		full := func(s string) string { return strings.ReplaceAll(s, "PREFIX", b.path()) }
		answer = http.Header{"Set-Cookie": {"first=1; Path=/", full(cookie)}}
		got := c.get(t, "localhost", b.path()+"/x").Header["Set-Cookie"]
		if want := []string{full("first=1; Path=PREFIX/"), full(want)}; !slices.Equal(got, want) {
			t.Errorf("cookie %s became %q, want %q", full(cookie), got, want)
		}
	}
	answer = http.Header{}
	for _, name := range originWide {
		answer.Set(name, "x")
	}
	if got := c.get(t, "localhost", b.path()+"/").Header; len(got) > 3 || got.Get("Service-Worker-Allowed") != "" {
		t.Errorf("the shared host was sent %v", got)
	}
	if got := c.get(t, b.host(), "/").Header; got.Get("Service-Worker-Allowed") != "x" {
		t.Errorf("the sandbox's own host was sent %v", got)
	}
}

// FuzzParsePath: an accepted path has one spelling, and no reader of it that
// cleans or decodes finds another sandbox.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{someID + "/80/", someID + "/80", someID + "-x/80/a/../b", someID + "/80/a%2F../..", "../x/1/", someID + "/80/%5c..%5c.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sent string) {
		rt, fail := parsePath(sent)
		if fail != nil {
			return
		}
		full := pathStart + sent
		if rt.by != byPath || rt.port == 0 || !isAlnum(rt.id) || !below(full, rt.prefix) && !strings.HasPrefix(full, rt.prefix+"/") {
			t.Fatalf("%q: got %+v", sent, rt)
		}
		decoded, err := url.PathUnescape(full)
		if err != nil {
			t.Fatalf("%q is accepted and cannot be decoded", sent)
		}
		for _, reading := range []string{full, decoded, strings.ReplaceAll(decoded, "\\", "/")} {
			if !below(path.Clean(reading), rt.prefix) {
				t.Fatalf("%q: read as %s, which is not below %s", sent, path.Clean(reading), rt.prefix)
			}
		}
	})
}

// FuzzLocalize: whatever an app says, a redirect that was meant for its own
// host does not leave it, and a cookie's path does not leave the prefix.
func FuzzLocalize(f *testing.F) {
	const prefix = "/sandbox/" + someID + "/80"
	for _, s := range []string{"/", "//x", "/\\x", "http://localhost/a", "http://localhost\\@x", "https:/x", "a=b; Path=/; Domain=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said string) {
		if got := localize(said, prefix, "localhost"); got != said && !below(got, prefix) {
			t.Fatalf("redirect to %q became %q", said, got)
		}
		parts := strings.Split(confineCookie(said, prefix), ";")
		for _, part := range parts[1:] {
			name, value, _ := strings.Cut(part, "=")
			name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
			if name == "domain" || name == "path" && strings.HasPrefix(value, "/") && !below(value, prefix) {
				t.Fatalf("cookie %q became %q", said, parts)
			}
		}
	})
}
