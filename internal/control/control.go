// Package control is the HTTP API: it authenticates, validates and translates.
// What a sandbox is made of and how its policy is enforced happens behind the
// Engine; one function maps every error to an answer.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// Engine runs the sandboxes. Errors it returns for a sandbox wrap the sentinels
// of package sandbox; others are internal.
type Engine interface {
	// Create returns once the sandbox can be used and its policy is in force.
	Create(ctx context.Context, spec sandbox.Spec) (store.Sandbox, error)
	Kill(ctx context.Context, id string) error
	// SetEnd moves the end of a sandbox's life; with extendOnly never to an
	// earlier time.
	SetEnd(ctx context.Context, id string, at time.Time, extendOnly bool) (store.Sandbox, error)
	// SetNetwork replaces the network document and returns once the data plane
	// has confirmed it. sandbox.ErrGeneration.
	SetNetwork(ctx context.Context, id string, change sandbox.NetworkChange) (sandbox.Receipt, error)
	// EditNetwork replaces the lists of the network document by what edit makes
	// of the record, and leaves the rest of it alone. edit may be called more than
	// once; its error is returned unwrapped.
	EditNetwork(ctx context.Context, id string, edit func(store.Sandbox) (allowOut, denyOut []string, err error)) (store.Sandbox, sandbox.Receipt, error)
	// Grant allows entries of allowOut beside the document until a time, and
	// returns once the data plane has confirmed it. sandbox.ErrGrants.
	Grant(ctx context.Context, id string, entries []string, until time.Time) (sandbox.Grant, sandbox.Receipt, error)
	// Revoke ends a grant before its time. sandbox.ErrNoGrant.
	Revoke(ctx context.Context, id, grant string) (sandbox.Receipt, error)
	// Samples returns readings from oldest to newest; a zero time leaves that
	// side open.
	Samples(ctx context.Context, id string, from, to time.Time) ([]sandbox.Sample, error)
	// GuestToken is empty for a sandbox that is not secured.
	GuestToken(s store.Sandbox) secret.String
	// TrafficToken is empty where no port is private.
	TrafficToken(s store.Sandbox) secret.String
	// RotateTrafficToken replaces the traffic token: once it returns, the old
	// one lets nobody in, and what it had let in is cut. sandbox.ErrPublic
	// where no port is private.
	RotateTrafficToken(ctx context.Context, id string) (secret.String, error)
	// Link makes what lets a browser into a private port for a while: the query
	// of a URL of that port.
	Link(id string, port uint16, life time.Duration) (query string, expires time.Time, err error)
	// Count is the number of live sandboxes.
	Count() int
}

// Templates keeps what sandboxes are started from.
type Templates interface {
	// Resolve finds a template by id or name; sandbox.ErrTemplateNotFound.
	Resolve(ctx context.Context, ref string) (store.Template, error)
	AddDir(ctx context.Context, path string, names []string) (store.Template, error)
	AddTar(ctx context.Context, path string, names []string) (store.Template, error)
	AddImage(ctx context.Context, ref string, names []string, insecure bool) (store.Template, error)
	Remove(ctx context.Context, ref string) error
	List(ctx context.Context) ([]store.Template, error)
}

// Config is what an API is made of. Every field but Domain and Anonymous is
// required.
type Config struct {
	Store     store.Store
	Engine    Engine
	Templates Templates
	Flows     Flows
	// Lifetime ends when the server stops, and the streams with it.
	Lifetime context.Context
	// Compile makes a policy of a document as the engine will, or returns a
	// *policy.EntryError for an entry that is wrong.
	Compile func(policy.Document) (*policy.Policy, error)
	// Secrets keeps what rules of sandboxes refer to.
	Secrets Secrets
	// Domain is what public hosts end in, with a port where that is not the
	// scheme's own. Empty answers null, and every client falls back to its own
	// configuration.
	Domain string
	// Scheme is how public hosts are reached, "https" or "http".
	Scheme string
	// Anonymous is the team that requests without an API key act for, as
	// CubeSandbox's clients may send them. Empty refuses such requests.
	Anonymous string
	// MaxTimeout is how far ahead the end of a sandbox may be set.
	MaxTimeout time.Duration
	Logger     *slog.Logger
}

// API serves the HTTP API.
type API struct {
	Config
	// bodyTimeout bounds how long a request's body may take to arrive.
	bodyTimeout      time.Duration
	streams          streams
	public, operator http.Handler
}

// e2bDomains are treated by E2B's SDKs as E2B's cloud: answering one of them
// would send the client, and its tokens, away from this server.
var e2bDomains = []string{"e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"}

// New checks the configuration.
func New(c Config) (*API, error) {
	switch {
	case c.Store == nil, c.Engine == nil, c.Templates == nil, c.Flows == nil, c.Lifetime == nil, c.Compile == nil, c.Secrets == nil, c.Logger == nil:
		return nil, errors.New("control: incomplete configuration")
	case c.Scheme != "https" && c.Scheme != "http":
		return nil, fmt.Errorf("control: scheme %q of public hosts is neither https nor http", c.Scheme)
	case c.Anonymous != "" && !api.ValidTeam(c.Anonymous):
		return nil, fmt.Errorf("control: team %q for requests without a key cannot be a team's name", c.Anonymous)
	case c.MaxTimeout < time.Second:
		return nil, fmt.Errorf("control: longest timeout %v is less than a second", c.MaxTimeout)
	case slices.Contains(e2bDomains, strings.ToLower(c.Domain)):
		return nil, fmt.Errorf("control: domain %s belongs to E2B: clients would leave this server", c.Domain)
	}
	a := &API{Config: c, bodyTimeout: 10 * time.Second}
	a.public = a.serve(publicRoutes, a.authenticate)
	a.operator = a.serve(slices.Concat(publicRoutes, operatorRoutes), a.authenticateOperator)
	return a, nil
}

// Handler serves the public API.
func (a *API) Handler() http.Handler { return a.public }

// Operator serves the public API and the operator's routes. It must only be
// reachable by the operator: a request without API key acts for the default
// team.
func (a *API) Operator() http.Handler { return a.operator }
