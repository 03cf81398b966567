// Package app wires the parts of the server together. Only cmd/moat imports it.
package app

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/secret"
)

// Names of the isolation drivers, as operators write them.
const (
	GVisor     = "gvisor"
	Namespaces = "namespaces"
)

// SocketName is the operator's unix socket inside the data directory.
const SocketName = "moat.sock"

// Config is everything the operator decides. cmd/moat has checked each value's
// form; whether the machine can honour it is found out here.
type Config struct {
	// DataDir holds all state and the operator's socket.
	DataDir string
	// Domain is the name below which sandboxes are reached, as clients write it:
	// with a port where that is not the scheme's own.
	Domain string
	// HTTP and HTTPS are the addresses to listen on; empty means no listener.
	HTTP, HTTPS string
	// TLSCert and TLSKey are PEM files for HTTPS. They are read again when they
	// have changed.
	TLSCert, TLSKey string
	// TLSOwnCA takes the certificates from an authority of the server's own
	// instead, and ACME from a public one, where it names any.
	TLSOwnCA bool
	ACME     ACME
	// ExtraCA is a PEM file of authorities that upstream connections and every
	// sandbox trust in addition; empty means none.
	ExtraCA string
	// UpstreamDNS are the resolvers to ask; empty means the machine's own.
	UpstreamDNS []netip.AddrPort
	// AllowRanges are exempt from the never-reachable table.
	AllowRanges []netip.Prefix
	// KillOnExit removes all sandboxes when the server stops, instead of
	// leaving them for the next one to adopt.
	KillOnExit bool
	// Isolation is GVisor or Namespaces: the least the server may start with.
	Isolation string
	// Pool is how many booted sandboxes wait for a create; 0 boots on demand.
	Pool int
	// MaxSandboxes and TeamLimit bound how many sandboxes live at once, on the
	// machine and for one team. Both are positive.
	MaxSandboxes, TeamLimit int
	// MaxTimeout is the longest life a caller may ask for.
	MaxTimeout time.Duration
	// Anonymous is the team that requests without an API key act for; empty
	// refuses them.
	Anonymous string
	// Ingress bounds what comes in.
	Ingress IngressLimits
	// Metrics is the address where Prometheus finds the metrics; empty leaves
	// them on the operator's socket alone.
	Metrics string
	// APIKey presets the first key; empty means that one is generated.
	APIKey secret.String
	Logger *slog.Logger
	// Ready is called once, when every listener answers.
	Ready func(Endpoints)
}

// IngressLimits bound what comes in; zero values leave it to package ingress.
type IngressLimits struct {
	// Connections of clients, and requests of one sandbox, open at once.
	Connections, PerSandbox int
	// Unknown is how often a minute one address may ask for sandboxes that do
	// not exist.
	Unknown int
	// Header bounds the headers of a request, in bytes, and HeaderTimeout the
	// time they take.
	Header        int
	HeaderTimeout time.Duration
	// RefusePreflight sends preflights of browsers (CORS) for private ports away
	// like every request without a token.
	RefusePreflight bool
}

// MinHeader is the least that IngressLimits.Header may be.
const MinHeader = ingress.MinMaxHeader

// DefaultIngress returns the limits that hold where none are given.
func DefaultIngress() IngressLimits {
	return IngressLimits{
		Connections: ingress.DefaultMaxConnections, PerSandbox: ingress.DefaultMaxInFlight, Unknown: ingress.DefaultMaxUnknown,
		Header: ingress.DefaultMaxHeader, HeaderTimeout: ingress.DefaultHeaderTimeout,
	}
}

// ACME is where certificates are to come from by themselves.
type ACME struct {
	// Directory is the URL of the authority's directory.
	Directory string
	// Email is for the authority's messages; may be empty.
	Email string
	// Hook is a program that sets DNS records, which a certificate for all
	// sandboxes needs; without it the certificate is for the API.
	Hook string
}

// Endpoints is what a client must know to use a running server.
type Endpoints struct {
	APIURL     string
	SandboxURL string
	Domain     string
	// Key is the first API key, only when this start generated it: it is kept
	// nowhere and cannot be shown again.
	Key secret.String
}

// Level grades a finding of Doctor.
type Level string

// The machine is fine in this respect; it works with less; it cannot work.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing Doctor looked at.
type Finding struct {
	Level   Level  `json:"level"`
	Subject string `json:"subject"`
	Detail  string `json:"detail"`
}

// Report is what Doctor found out about this machine.
type Report struct {
	Findings []Finding `json:"findings"`
	// Isolation describes in a sentence what a sandbox gets here.
	Isolation string `json:"isolation"`
}
