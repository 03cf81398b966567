// Package sandbox says what a sandbox is: its specification, its states, the
// errors callers branch on, and the contract that isolation runtimes fulfil.
package sandbox

import (
	"crypto/rand"
	"errors"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// State is where a sandbox is in its life.
type State string

// A sandbox is recorded as Running when all of it is in place, and as Stopping
// before anything is torn down. Whatever is not Running after a restart of the
// server is removed.
const (
	Running  State = "running"
	Stopping State = "stopping"
)

// Spec is what a caller asks for.
type Spec struct {
	Team     string
	Template string // as the caller named it: an id or an alias
	Timeout  time.Duration
	// Secure guards the guest daemon with an access token.
	Secure   bool
	Metadata map[string]string
	// Env is handed to the guest and kept nowhere else: it may hold secrets.
	Env     map[string]string
	Network policy.Document
	// InternetAccess is the flag exactly as given; nil when it never was. Its
	// meaning is already part of Network.
	InternetAccess *bool
	Ingress        Ingress
}

// Errors that callers branch on. Anything else is internal.
var (
	ErrNotFound         = errors.New("sandbox not found")
	ErrNotRunning       = errors.New("sandbox is not running")
	ErrTemplateNotFound = errors.New("template not found")
	// ErrTemplateBroken: the template is known but its files are gone.
	ErrTemplateBroken = errors.New("template is damaged")
	// ErrTeamLimit: the team has as many sandboxes as it may have.
	ErrTeamLimit = errors.New("the team's sandbox limit is reached")
	// ErrNoCapacity: this machine has no slot or memory for another sandbox.
	ErrNoCapacity = errors.New("no capacity for another sandbox")
	// ErrGone: a box no longer runs.
	ErrGone = errors.New("box is gone")
)

// idAlphabet has 32 letters so that every random byte maps to one without bias.
const idAlphabet = "abcdefghijklmnopqrstuvwxyz234567"

// NewID returns a fresh sandbox id: "i" and 20 random characters (100 bits),
// safe as a DNS label and without dashes, as E2B's hosts need.
func NewID() string { return "i" + randomName(20) }

// NewBoxID returns a fresh runtime id. All have one length, because gVisor
// matches ids by prefix.
func NewBoxID() string { return "b" + randomName(16) }

func randomName(n int) string {
	raw := make([]byte, n)
	_, _ = rand.Read(raw) // documented never to fail
	for i, b := range raw {
		raw[i] = idAlphabet[b%32]
	}
	return string(raw)
}

// ValidID reports whether s has the form of a sandbox id. It does not say
// that such a sandbox exists.
func ValidID(s string) bool {
	if len(s) < 2 || len(s) > 40 || s[0] != 'i' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// Sample is one reading of a sandbox's own view of its resources, as its guest
// daemon reports it. Sizes are in bytes.
type Sample struct {
	At         time.Time
	CPUs       int
	CPUUsedPct float64 // of all CPUs together, 0 to 100
	MemUsed    int64
	MemTotal   int64
	MemCache   int64
	DiskUsed   int64
	DiskTotal  int64
}
