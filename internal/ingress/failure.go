package ingress

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"
)

// failure is an answer that the ingress gives in place of a sandbox: the
// statuses, keys and messages of E2B, with a code that tells the causes apart.
type failure struct {
	SandboxID string `json:"sandboxId,omitempty"`
	Message   string `json:"message"` // one sentence without a full stop
	Port      uint16 `json:"port,omitempty"`
	Path      string `json:"path,omitempty"`
	Limit     int    `json:"connectionLimit,omitempty"`
	Status    int    `json:"code"`
	Code      string `json:"error_code"` // stable, for programs
	// Text is the status in words: where CubeSandbox's clients look.
	Text string `json:"error"`

	// Title and Hint, what one can do about it, are for the page.
	Title string `json:"-"`
	Hint  string `json:"-"`
}

func badRequest(message string) *failure {
	return &failure{
		Status: http.StatusBadRequest, Code: "bad_request", Message: message,
		Title: "Bad Request",
		Hint:  "The request was not passed on to any sandbox.",
	}
}

func badHost(err error) *failure {
	return &failure{
		Status: http.StatusBadRequest, Code: "bad_host", Message: err.Error(),
		Title: "Invalid Sandbox Address",
		Hint:  "A sandbox is reached at <port>-<sandbox id>.<domain>.",
	}
}

func missingHeader(name string) *failure {
	return &failure{
		Status: http.StatusBadRequest, Code: "missing_header",
		Message: fmt.Sprintf("missing header: %s and %s belong together, %s is not there", headerID, headerPort, name),
		Title:   "Missing Header",
		Hint:    "Send both headers, or neither to reach the API.",
	}
}

func reservedPath(path string) *failure {
	return &failure{
		Status: http.StatusNotFound, Code: "reserved_path", Path: path,
		Message: "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL",
		Title:   "Endpoint Not Available",
		Hint:    "Only the server itself may call it.",
	}
}

func notFound(addr address) *failure {
	return &failure{
		Status: http.StatusBadGateway, Code: "sandbox_not_found", SandboxID: addr.id,
		Message: "The sandbox was not found",
		Title:   "Sandbox Not Found",
		Hint:    "It may have reached its end of life, or the address may be mistyped.",
	}
}

func tokenMissing(addr address) *failure {
	return &failure{
		Status: http.StatusForbidden, Code: "traffic_token_missing", SandboxID: addr.id,
		Message: "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing",
		Title:   "Missing Traffic Access Token",
		Hint:    "Whoever created the sandbox was given the token.",
	}
}

func tokenInvalid(addr address, header string) *failure {
	return &failure{
		Status: http.StatusForbidden, Code: "traffic_token_invalid", SandboxID: addr.id,
		Message: "Sandbox is secured with traffic access token. Provided token in header '" + lower(header) + "' is invalid",
		Title:   "Invalid Traffic Access Token",
		Hint:    "Whoever created the sandbox was given the token.",
	}
}

func tooMany(addr address, limit int) *failure {
	return &failure{
		Status: http.StatusTooManyRequests, Code: "too_many_connections", SandboxID: addr.id, Limit: limit,
		Message: "The sandbox has too many open connections",
		Title:   "Too Many Connections",
		Hint:    "Try again when some of them have ended.",
	}
}

func stopping(addr address) *failure {
	return &failure{
		Status: http.StatusServiceUnavailable, Code: "server_stopping", SandboxID: addr.id,
		Message: "The server is stopping",
		Title:   "Server Stopping",
		Hint:    "Try again in a moment.",
	}
}

// upstreamFailure is any trouble between this server and the program in the
// sandbox. All have E2B's status and keys.
func upstreamFailure(addr address, code, message, title, hint string) *failure {
	return &failure{
		Status: http.StatusBadGateway, Code: code, SandboxID: addr.id, Port: addr.port,
		Message: message, Title: title, Hint: hint,
	}
}

func portClosed(addr address) *failure {
	return upstreamFailure(addr, "port_closed",
		"The sandbox is running but port is not open",
		"Closed Port Error",
		fmt.Sprintf("There is no service running on port %d. A server in the sandbox must listen on all interfaces, 0.0.0.0, to be reached.", addr.port))
}

func upstreamTimeout(addr address) *failure {
	return upstreamFailure(addr, "upstream_timeout",
		"The sandbox is running but does not answer",
		"Sandbox Not Answering",
		"No connection came about in time. The sandbox may be overloaded.")
}

func upstreamUnreachable(addr address) *failure {
	return upstreamFailure(addr, "upstream_unreachable",
		"The sandbox is running but cannot be reached",
		"Sandbox Unreachable",
		"The connection to the sandbox failed.")
}

func upstreamReset(addr address) *failure {
	return upstreamFailure(addr, "upstream_reset",
		"The service on this port ended the connection without a valid HTTP answer",
		"Connection Reset",
		"The service may have crashed, or may not speak HTTP.")
}

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
