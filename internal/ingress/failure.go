package ingress

import (
	"fmt"
	"net/http"
	"time"
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
	// Retry, when not 0, is when to try again.
	Retry time.Duration `json:"-"`
}

// Codes that are looked at again.
const (
	codeTokenMissing = "traffic_token_missing"
	codeLinkExpired  = "link_expired"
	codeBrokenOff    = "broken_off" // for records: clients are told by the break itself
)

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

// misdirected is for what does not come to the host of a sandbox, where nothing
// else is served.
func misdirected() *failure {
	return &failure{
		Status: http.StatusMisdirectedRequest, Code: "misdirected",
		Message: "Only public URLs of sandboxes are served here, each on a connection of its own host",
		Title:   "Misdirected Request",
		Hint:    "From inside a sandbox other sandboxes are reached at <port>-<sandbox id>.<domain>, and the API is not.",
	}
}

func badPath(err error) *failure {
	return &failure{
		Status: http.StatusBadRequest, Code: "bad_path", Message: err.Error(),
		Title: "Invalid Path",
		Hint:  "By path a sandbox is reached at /sandbox/<sandbox id>/<port>/.",
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

// unknownTooOften is for one that asks for sandboxes as if it guessed.
func unknownTooOften(addr address, retry time.Duration) *failure {
	return &failure{
		Status: http.StatusTooManyRequests, Code: "too_many_unknown", SandboxID: addr.id, Retry: retry,
		Message: "Too many requests for sandboxes that do not exist",
		Title:   "Too Many Requests",
		Hint:    "Sandboxes that do exist can be reached as before.",
	}
}

// forbidden is what a private port says to a request that may not pass.
func forbidden(addr address, code, message, title, hint string) *failure {
	return &failure{
		Status: http.StatusForbidden, Code: code, SandboxID: addr.id, Message: message, Title: title, Hint: hint,
	}
}

func tokenMissing(addr address) *failure {
	return forbidden(addr, codeTokenMissing,
		"Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing",
		"Missing Traffic Access Token",
		"To open it in a browser, ask whoever created the sandbox for a link.")
}

func tokenInvalid(addr address, header string) *failure {
	return forbidden(addr, "traffic_token_invalid",
		"Sandbox is secured with traffic access token. Provided token in header '"+lower(header)+"' is invalid",
		"Invalid Traffic Access Token",
		"Whoever created the sandbox was given the token.")
}

func linkExpired(addr address) *failure {
	return forbidden(addr, codeLinkExpired,
		"The link to this sandbox has expired",
		"Link Expired",
		"Ask whoever sent the link for a new one.")
}

func linkInvalid(addr address) *failure {
	return forbidden(addr, "link_invalid",
		"The link does not open this port of this sandbox",
		"Link Not Valid",
		"It was revoked, or is incomplete. Ask whoever sent it for a new one.")
}

func crossSite(addr address) *failure {
	return forbidden(addr, "cross_site",
		"The request was made by a page of another host",
		"Cross-Site Request Refused",
		"A visit by link is for the pages of this very host alone. Programs send the token instead.")
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

func upstreamTLS(addr address) *failure {
	return upstreamFailure(addr, "upstream_tls",
		"The service on this port does not speak TLS",
		"No TLS on This Port",
		fmt.Sprintf("The sandbox was created with port %d among those that are spoken to over TLS.", addr.port))
}

func upstreamReset(addr address) *failure {
	return upstreamFailure(addr, "upstream_reset",
		"The service on this port ended the connection without a valid HTTP answer",
		"Connection Reset",
		"The service may have crashed, or may not speak HTTP.")
}
