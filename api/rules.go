package api

import (
	"bytes"
	"encoding/json"
	"errors"
)

// Redacted stands in answers where a value is not shown.
const Redacted = "[redacted]"

// Rules say what becomes of HTTP requests on port 80 and HTTPS requests on port
// 443. They have two shapes with different meanings, and at most one is used: in
// JSON Hosts is an object and Ordered is a list. Values of headers are never
// shown again: answers have Redacted in their place.
type Rules struct {
	// Hosts is E2B's shape, by host: a name, or *.name for all names below it. It
	// opens nothing. Each host has one rule at most.
	Hosts map[string][]HostRule
	// Ordered is CubeSandbox's shape. The hosts that the rules name are reachable,
	// the first rule that matches a request decides, and what none of them matches
	// is answered with 403.
	Ordered []OrderedRule
}

// HostRule says how requests to a host are changed.
type HostRule struct {
	Transform Transform `json:"transform,omitzero"`
}

// Transform is what is done to a request.
type Transform struct {
	// Headers are set, each in place of all that the sandbox sends under that
	// name. In a value ${e2b.secrets.NAME} stands for a secret of the team.
	Headers map[string]string `json:"headers,omitempty"`
	// StripCredentials removes Authorization, Cookie, API keys and the like that
	// the sandbox sends, first. This is not E2B's.
	StripCredentials bool `json:"stripCredentials,omitempty"`
	// Strict opens TLS to the host even where nothing is changed, so that no
	// request passes that is for another host. This is not E2B's.
	Strict bool `json:"strict,omitempty"`
}

// OrderedRule decides about the requests that it matches.
type OrderedRule struct {
	Name   string `json:"name"`
	Match  Match  `json:"match,omitzero"`
	Action Action `json:"action"`
}

// Match is a condition on requests: all that is given must hold.
type Match struct {
	SNI    string   `json:"sni,omitempty"`    // a name or *.name
	Host   string   `json:"host,omitempty"`   // a name, *.name or an address
	Method []string `json:"method,omitempty"` // any of them
	// Path is compared with the decoded, normalised path; a final * stands for any
	// rest.
	Path   string `json:"path,omitempty"`
	Scheme string `json:"scheme,omitempty"` // http or https
	Port   int    `json:"port,omitempty"`   // 80 or 443, as Scheme has it
}

// Action is what is done with a request.
type Action struct {
	Allow bool `json:"allow"`
	// Audit is full, metadata or none; empty means metadata.
	Audit  string   `json:"audit,omitempty"`
	Inject []Inject `json:"inject,omitempty"`
	// StripCredentials is as in Transform. This is not Cube's.
	StripCredentials bool `json:"stripCredentials,omitempty"`
}

// Inject is a header to set.
type Inject struct {
	Header string `json:"header"`
	// Secret is the value itself, or has ${e2b.secrets.NAME} in it.
	Secret string `json:"secret"`
	// Format is where the value goes: the first ${SECRET} in it is replaced.
	// Empty means the value alone.
	Format string `json:"format,omitempty"`
}

// MarshalJSON writes the shape that is used.
func (r Rules) MarshalJSON() ([]byte, error) {
	switch {
	case r.Hosts != nil && r.Ordered != nil:
		return nil, errors.New("rules have two shapes at once")
	case r.Ordered != nil:
		return json.Marshal(r.Ordered)
	case r.Hosts != nil:
		return json.Marshal(r.Hosts)
	}
	return []byte("{}"), nil
}

// UnmarshalJSON reads either shape.
func (r *Rules) UnmarshalJSON(raw []byte) error {
	*r = Rules{}
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
		return json.Unmarshal(raw, &r.Ordered)
	}
	return json.Unmarshal(raw, &r.Hosts)
}

// EgressProxy is a SOCKS5 proxy through which TCP connections leave, after they
// were found allowed. While it cannot be reached they fail.
type EgressProxy struct {
	Address  string `json:"address"` // host:port
	Username string `json:"username,omitempty"`
	// Password is never shown: answers leave it out.
	Password string `json:"password,omitempty"`
}
