package policy

import "github.com/moat-sandbox/moat/internal/secret"

// Rules say what becomes of requests: HTTP on port 80, HTTPS on port 443. They
// come in two shapes with different meanings; a document has at most one.
type Rules struct {
	// Hosts is E2B's shape: how requests to a host are changed. It opens
	// nothing, and requests to other hosts pass as they are.
	Hosts []HostRule `json:"hosts,omitempty"`
	// Ordered is CubeSandbox's shape. The hosts that these rules name are
	// reachable. Of the rules that match a request the first decides; a request
	// to such a host that no rule matches is denied.
	Ordered []OrderedRule `json:"ordered,omitempty"`
}

// HostRule changes the requests to one host. Of several that cover a host only
// the most specific counts.
type HostRule struct {
	// Host is a name, or *.name for all names below it.
	Host    string   `json:"host"`
	Headers []Header `json:"headers,omitempty"`
	// StripCredentials removes what the sandbox sends to authenticate itself.
	StripCredentials bool `json:"stripCredentials,omitempty"`
	// Strict looks into TLS even where there is nothing to change, so that each
	// request is known to be for the host that the connection is for.
	Strict bool `json:"strict,omitempty"`
}

// OrderedRule decides about the requests that it matches.
type OrderedRule struct {
	Name  string `json:"name"` // unique, for people
	Match Match  `json:"match"`
	Allow bool   `json:"allow"`
	// Audit is full, metadata or none; empty means metadata.
	Audit            string   `json:"audit,omitempty"`
	Inject           []Header `json:"inject,omitempty"`
	StripCredentials bool     `json:"stripCredentials,omitempty"`
}

// Match is a condition on requests. What is empty matches everything, the rest
// must all hold.
type Match struct {
	// SNI and Host are a name or *.name; Host may be an address. A rule with
	// neither makes nothing reachable.
	SNI  string `json:"sni,omitempty"`
	Host string `json:"host,omitempty"`
	// Methods are alternatives.
	Methods []string `json:"methods,omitempty"`
	// Path is compared with the decoded, normalised path, without the query. A
	// final * stands for any rest.
	Path   string `json:"path,omitempty"`
	Scheme string `json:"scheme,omitempty"` // http or https
	Port   int    `json:"port,omitempty"`   // needs Scheme
}

// Header is set in a request, in place of all that the sandbox sends under that
// name.
type Header struct {
	Name string `json:"name"`
	// Value is a template, see ParseTemplate. It may be a credential and is not
	// part of the document's JSON: who stores documents keeps Document.Secrets
	// apart, sealed. A header without a value denies its requests.
	Value secret.String `json:"-"`
}
