// Package session holds what /init told the daemon: the access token, the
// defaults for users and directories, and the environment of commands.
package session

import (
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/moat-sandbox/moat/internal/guest/account"
)

// TokenHeader is the HTTP header that carries the access token.
const TokenHeader = "X-Access-Token"

// Settings is one immutable answer to "what did /init say".
type Settings struct {
	token   token
	user    string
	workdir string
	env     map[string]string
}

// token keeps the access token behind a pointer, out of reach of fmt and of
// encoders.
type token struct{ p *string }

// NewSettings returns settings; an empty token leaves the daemon open, an
// empty user means root.
func NewSettings(accessToken, user, workdir string, env map[string]string) *Settings {
	if user == "" {
		user = account.Root
	}
	return &Settings{token: token{&accessToken}, user: user, workdir: workdir, env: maps.Clone(env)}
}

// Store holds the current settings; until the first Set there are none.
type Store struct{ p atomic.Pointer[Settings] }

// Get returns the current settings, or nil before the first /init.
func (s *Store) Get() *Settings { return s.p.Load() }

// Set replaces the settings.
func (s *Store) Set(v *Settings) { s.p.Store(v) }

// Open reports whether the daemon was told to work without a token.
func (s *Settings) Open() bool { return *s.token.p == "" }

// Authorized reports whether a caller with this token may act. It takes the
// same time whatever the candidate.
func (s *Settings) Authorized(candidate string) bool {
	return s.Open() || same(*s.token.p, candidate)
}

func same(want, got string) bool {
	// Hashing first hides the length of the secret as well.
	a, b := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(got))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// Env returns a copy of the environment that every command gets.
func (s *Settings) Env() map[string]string { return maps.Clone(s.env) }

// User finds a user by name, or the default user when name is empty.
func (s *Settings) User(name string) (account.User, error) {
	if name == "" {
		name = s.user
	}
	book, err := account.Open()
	if err != nil {
		return account.User{}, err
	}
	return book.User(name)
}

// Directory returns where a command or a relative path starts when nothing
// else is said: the default directory, or else the user's home.
func (s *Settings) Directory(u account.User) string {
	if s.workdir == "" {
		return u.Home
	}
	return expand(s.workdir, u)
}

// Path makes a path absolute and clean: a leading "~" is the user's home, and
// what is relative starts at Directory. It does not look at any file.
func (s *Settings) Path(u account.User, path string) string {
	path = expand(path, u)
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.Directory(u), path)
	}
	return filepath.Clean(path)
}

func expand(path string, u account.User) string {
	if path == "~" || strings.HasPrefix(path, "~/") {
		return filepath.Join(u.Home, path[1:])
	}
	return path
}
