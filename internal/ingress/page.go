package ingress

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(strings.TrimSpace(pageText)))

// write sends the failure, as a page to people and as JSON to programs. The
// request's own text appears in it only escaped.
func (f *failure) write(w http.ResponseWriter, r *http.Request) {
	f.Text = strings.ToLower(http.StatusText(f.Status))
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer") // the URL may hold a link
	if f.Retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int((f.Retry+time.Second-1)/time.Second)))
	}
	if wantsPage(r.Header) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		w.WriteHeader(f.Status)
		_ = page.Execute(w, f) // fails only when the client has gone
		return
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(f.Status)
	_ = json.NewEncoder(w).Encode(f) // likewise
}

// browsers are the marks of a browser in a User-Agent.
var browsers = []string{"mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"}

// wantsPage reports whether a person looks at the answer: a browser that
// navigates, rather than a program or a page's script.
func wantsPage(h http.Header) bool {
	agent := strings.ToLower(h.Get("User-Agent"))
	browser := false
	for _, mark := range browsers {
		browser = browser || strings.Contains(agent, mark)
	}
	accept := strings.ToLower(h.Get("Accept"))
	if !browser || strings.Contains(accept, "json") && !strings.Contains(accept, "html") {
		return false
	}
	switch h.Get("Sec-Fetch-Mode") {
	case "navigate":
		return true
	case "cors", "no-cors", "same-origin", "websocket":
		return false
	}
	return h.Get("X-Requested-With") == ""
}
