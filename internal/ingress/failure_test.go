package ingress

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"

func TestWantsPage(t *testing.T) {
	type h = map[string]string
	for _, x := range []struct {
		want bool
		h    h
	}{
		{true, h{"User-Agent": firefox}},
		{true, h{"User-Agent": firefox, "Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}},
		{true, h{"User-Agent": firefox, "Accept": "application/json, text/html"}},
		{true, h{"User-Agent": firefox, "Accept": "*/*", "Sec-Fetch-Mode": "navigate"}},
		{true, h{"User-Agent": firefox, "Sec-Fetch-Mode": "navigate", "X-Requested-With": "x"}},
		{true, h{"User-Agent": "OPERA"}},
		{false, h{}},
		{false, h{"User-Agent": "curl/8.5.0", "Accept": "text/html"}},
		{false, h{"User-Agent": "curl/8.5.0", "Sec-Fetch-Mode": "navigate"}},
		{false, h{"User-Agent": "e2b-js-sdk/2.51.0"}},
		{false, h{"User-Agent": firefox, "Accept": "application/json"}},
		{false, h{"User-Agent": firefox, "Accept": "application/json", "Sec-Fetch-Mode": "navigate"}},
		{false, h{"User-Agent": firefox, "Sec-Fetch-Mode": "cors"}},
		{false, h{"User-Agent": firefox, "Sec-Fetch-Mode": "no-cors"}},
		{false, h{"User-Agent": firefox, "Sec-Fetch-Mode": "same-origin"}},
		{false, h{"User-Agent": firefox, "Sec-Fetch-Mode": "websocket"}},
		{false, h{"User-Agent": firefox, "X-Requested-With": "XMLHttpRequest"}},
	} {
		header := make(http.Header)
		for name, value := range x.h {
			header.Set(name, value)
		}
		if got := wantsPage(header); got != x.want {
			t.Errorf("%v: got %v", x.h, got)
		}
	}
}

// TestPages looks at every page there is.
func TestPages(t *testing.T) {
	addr := address{id: someID, port: 8080}
	titles := map[string]*failure{
		"Bad Request":                  badRequest("x"),
		"Invalid Sandbox Address":      badHost(errors.New("x")),
		"Missing Header":               missingHeader(headerID),
		"Endpoint Not Available":       reservedPath("/init"),
		"Sandbox Not Found":            notFound(addr),
		"Missing Traffic Access Token": tokenMissing(addr),
		"Invalid Traffic Access Token": tokenInvalid(addr, headerE2BToken),
		"Too Many Connections":         tooMany(addr, 5),
		"Closed Port Error":            portClosed(addr),
		"Sandbox Not Answering":        upstreamTimeout(addr),
		"Sandbox Unreachable":          upstreamUnreachable(addr),
		"Connection Reset":             upstreamReset(addr),
		"Server Stopping":              stopping(addr),
		"Invalid Path":                 badPath(errors.New("x")),
		"Too Many Requests":            unknownTooOften(addr, time.Second),
		"Link Expired":                 linkExpired(addr),
		"Link Not Valid":               linkInvalid(addr),
		"Cross-Site Request Refused":   crossSite(addr),
		"No TLS on This Port":          upstreamTLS(addr),
	}
	codes := make(map[string]bool)
	for title, f := range titles {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("User-Agent", firefox)
		w := httptest.NewRecorder()
		f.write(w, r)
		text := w.Body.String()
		if w.Code != f.Status || w.Header().Get("Content-Type") != "text/html; charset=utf-8" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: got %d %v", title, w.Code, w.Header())
		}
		if !strings.HasPrefix(text, "<html") || !strings.HasSuffix(text, "</html>") {
			t.Errorf("%s: page does not start and end as E2B's do", title)
		}
		for _, part := range []string{"<title>" + title + "</title>", f.Code, "prefers-color-scheme: dark"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s: page without %q", title, part)
			}
		}
		for _, asset := range []string{"http:", "https:", "src=", "href=", "url(", "@import", "<script"} {
			if strings.Contains(text, asset) {
				t.Errorf("%s: page loads something by %q", title, asset)
			}
		}
		if codes[f.Code] {
			t.Errorf("%s: error_code %s tells nothing apart", title, f.Code)
		}
		codes[f.Code] = true
	}
}

func TestClosedPortPageNamesPort(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("User-Agent", firefox)
	w := httptest.NewRecorder()
	portClosed(address{id: someID, port: 8080}).write(w, r)
	if text := w.Body.String(); !strings.Contains(text, "no service running on port 8080") || !strings.Contains(text, someID) {
		t.Errorf("got %s", text)
	}
}

func TestNothingIsReflectedRaw(t *testing.T) {
	w := newWorld(t)
	guest := newBox(49983)
	w.boxes.put(guest)
	c := w.client("h2")
	const attack = "<script>alert(1)</script>"
	for _, browser := range []bool{true, false} {
		path := c.request(t, "GET", guest.host(), "/init/"+attack, nil)
		id := c.request(t, "GET", "localhost", "/", nil)
		id.Header.Set("E2b-Sandbox-Id", attack)
		id.Header.Set("E2b-Sandbox-Port", "80")
		for _, req := range []*http.Request{path, id} {
			if browser {
				req.Header.Set("User-Agent", firefox)
			}
			if text := readAll(t, c.do(t, req).Body); strings.Contains(text, "<script") || !strings.Contains(text, "script") {
				t.Errorf("got %s", text)
			}
		}
	}
}
