// Package secret keeps values that must not be shown: a string type that no
// formatting verb reveals, and the master key from which tokens are derived.
package secret

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// String holds a secret. The value sits behind a pointer, so that no fmt verb,
// encoder or logger reaches it, not even through an unexported field.
type String struct{ p *string }

// New wraps a secret value.
func New(value string) String { return String{p: &value} }

// Reveal returns the value. Call it only where the secret leaves the process
// for whom it is meant.
func (s String) Reveal() string {
	if s.p == nil {
		return ""
	}
	return *s.p
}

// Known reports whether there is a value, which may be empty.
func (s String) Known() bool { return s.p != nil }

// Empty reports whether there is no secret.
func (s String) Empty() bool { return s.p == nil || *s.p == "" }

// Equal compares with a candidate in constant time. An empty secret equals
// nothing.
func (s String) Equal(candidate string) bool {
	if s.Empty() {
		return false
	}
	// Hashing first hides the length of the secret as well.
	want, got := sha256.Sum256([]byte(*s.p)), sha256.Sum256([]byte(candidate))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// String implements fmt.Stringer without revealing anything.
func (s String) String() string { return "[secret]" }

// GoString implements fmt.GoStringer without revealing anything.
func (s String) GoString() string { return "[secret]" }

// MarshalText implements encoding.TextMarshaler without revealing anything.
func (s String) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// Hash returns the hex SHA-256 of a high-entropy secret such as an API key:
// what may be kept at rest.
func Hash(value string) string {
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// Master derives tokens, so that none has to be stored. The zero Master has no
// key and derives nothing that anybody could know.
type Master struct{ key String }

const masterBytes = 32

// OpenMaster reads the master key from a file of mode 0600, creating both when
// the file does not exist.
func OpenMaster(path string) (Master, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw = make([]byte, masterBytes)
		_, _ = rand.Read(raw) // documented never to fail
		err = writeNew(path, raw)
	}
	if err != nil {
		return Master{}, fmt.Errorf("master key: %w", err)
	}
	if len(raw) != masterBytes {
		return Master{}, fmt.Errorf("master key: %s holds %d bytes, want %d", path, len(raw), masterBytes)
	}
	return Master{key: New(string(raw))}, nil
}

func writeNew(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Sync(), f.Close())
}

// Empty reports whether there is no key to derive from.
func (m Master) Empty() bool { return m.key.Empty() }

// Token derives a 64-digit hex token for a purpose and a subject. The same
// three inputs always give the same token; a different purpose or subject gives
// an unrelated one. Without a key each call gives a random token: one derived
// from nothing could be predicted, and an empty one would leave doors open.
func (m Master) Token(purpose, subject string) String {
	if m.Empty() {
		raw := make([]byte, sha256.Size)
		_, _ = rand.Read(raw) // documented never to fail
		return New(hex.EncodeToString(raw))
	}
	mac := hmac.New(sha256.New, []byte(m.key.Reveal()))
	fmt.Fprintf(mac, "%d:%s:%s", len(purpose), purpose, subject)
	return New(hex.EncodeToString(mac.Sum(nil)))
}
