// Package store is the contract for everything that must survive a restart:
// sandboxes, API keys, templates, secrets. Implementations are leaves (store/bolt);
// store/storetest holds them all to the same behaviour.
package store

import (
	"context"
	"errors"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// ErrNotFound is returned for a record that does not exist.
var ErrNotFound = errors.New("record not found")

// ErrExists is returned by the Create methods when the id is taken.
var ErrExists = errors.New("record exists")

// ErrLimit is returned to who has as many records as it may have.
var ErrLimit = errors.New("too many records")

// ErrFull is returned when the medium has no room for the change. Nothing of
// the change was kept.
var ErrFull = errors.New("no room left on the storage device")

// Store keeps records. Every method is atomic and durable when it returns nil,
// and safe for concurrent use. Records are returned by value: changing one
// changes nothing in the store.
type Store interface {
	CreateSandbox(ctx context.Context, s Sandbox) error
	Sandbox(ctx context.Context, id string) (Sandbox, error)
	// UpdateSandbox applies change to the stored record as one transaction and
	// returns the result. An error from change leaves the record as it was and
	// is returned unwrapped.
	UpdateSandbox(ctx context.Context, id string, change func(*Sandbox) error) (Sandbox, error)
	DeleteSandbox(ctx context.Context, id string) error
	// Sandboxes lists all records of one team, or of all teams for "", in no
	// particular order.
	Sandboxes(ctx context.Context, team string) ([]Sandbox, error)

	CreateKey(ctx context.Context, k Key) error
	// KeyByHash finds a key by the hash of its secret.
	KeyByHash(ctx context.Context, hash string) (Key, error)
	DeleteKey(ctx context.Context, id string) error
	Keys(ctx context.Context) ([]Key, error)

	// PutTemplate creates or replaces a template. A name that belongs to
	// another template moves to this one.
	PutTemplate(ctx context.Context, t Template) error
	// Template finds a template by id or by name.
	Template(ctx context.Context, ref string) (Template, error)
	DeleteTemplate(ctx context.Context, id string) error
	Templates(ctx context.Context) ([]Template, error)

	// PutSecret creates or replaces a team's secret.
	PutSecret(ctx context.Context, s Secret) error
	Secret(ctx context.Context, team, name string) (Secret, error)
	DeleteSecret(ctx context.Context, team, name string) error
	// Secrets lists the secrets of one team, or of all teams for "".
	Secrets(ctx context.Context, team string) ([]Secret, error)

	Close() error
}

// Sandbox is the record of one sandbox: all that a restarted server needs to
// adopt it. It holds no secret that is not sealed.
type Sandbox struct {
	ID         string         `json:"id"`
	Team       string         `json:"team"`
	TemplateID string         `json:"templateID"`
	Alias      string         `json:"alias,omitempty"` // the name the template was asked for by
	State      sandbox.State  `json:"state"`
	StartedAt  time.Time      `json:"startedAt"`
	EndAt      time.Time      `json:"endAt"`
	Secure     bool           `json:"secure"`
	Limits     sandbox.Limits `json:"limits"`

	Metadata map[string]string `json:"metadata,omitempty"`

	Network        policy.Document `json:"network"`
	InternetAccess *bool           `json:"internetAccess,omitempty"`
	// NetworkSecrets are what Network leaves out, sealed; empty for nothing.
	NetworkSecrets []byte `json:"networkSecrets,omitempty"`
	// Grants allow more than the document, for a while. Those whose time is over
	// may still be here; Policy leaves them out.
	Grants []sandbox.Grant `json:"grants,omitempty"`
	// Generation numbers what the sandbox may reach, from 1. The stored document
	// is always the one the data plane has confirmed.
	Generation uint64 `json:"generation"`

	Ingress sandbox.Ingress `json:"ingress"`
	// TrafficNonce is what the traffic token is derived from, beside the
	// server's own key; empty where no port demands one. Another nonce makes
	// another token.
	TrafficNonce string `json:"trafficNonce,omitempty"`

	// Runtime, Box and Slot say where it lives on this machine.
	Runtime string `json:"runtime"`
	Box     string `json:"box"`
	Slot    int    `json:"slot"`
}

// Key is an API key. Only the hash of its secret is kept.
type Key struct {
	ID        string    `json:"id"`
	Team      string    `json:"team"`
	Name      string    `json:"name"`
	Hash      string    `json:"hash"`   // hex SHA-256 of the key
	Prefix    string    `json:"prefix"` // its first characters, to recognise it by
	CreatedAt time.Time `json:"createdAt"`
}

// Secret is a value that a team's sandboxes may use without seeing it.
type Secret struct {
	Team string `json:"team"`
	Name string `json:"name"`
	// Sealed is the value, which only the vault can open.
	Sealed    []byte    `json:"sealed"`
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// Template is what sandboxes are started from.
type Template struct {
	ID    string   `json:"id"`
	Names []string `json:"names,omitempty"`
	// Source says in words what it was made from, for people.
	Source string `json:"source"`
	// Root is where its read-only files are.
	Root sandbox.Root `json:"root"`
	// SizeBytes is the size of the image; 0 where the root is the host's own.
	SizeBytes int64 `json:"sizeBytes"`
	// Env, User and Workdir are defaults for commands.
	Env       []string       `json:"env,omitempty"`
	User      string         `json:"user"`
	Workdir   string         `json:"workdir"`
	Limits    sandbox.Limits `json:"limits"`
	CreatedAt time.Time      `json:"createdAt"`
}
