package template

import (
	"crypto/rand"
	"fmt"
)

// maxName bounds a template's name, in bytes.
const maxName = 64

// validName reports whether s can be a template's id or name: lower-case
// letters, digits, "-" and "_", beginning with a letter or digit, as E2B's
// aliases are.
func validName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case (c == '-' || c == '_') && i > 0:
		default:
			return false
		}
	}
	return true
}

// checkNames refuses names that a new template cannot have.
func checkNames(names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("%w: a template needs at least one", ErrName)
	}
	for i, name := range names {
		if !validName(name) {
			return fmt.Errorf("%w: %.80q: use 1 to %d lower-case letters, digits, \"-\" and \"_\"", ErrName, name, maxName)
		}
		if name == Base || name == Interpreter {
			return fmt.Errorf("%w: %q belongs to the base template", ErrName, name)
		}
		for _, earlier := range names[:i] {
			if earlier == name {
				return fmt.Errorf("%w: %q is given twice", ErrName, name)
			}
		}
	}
	return nil
}

// idAlphabet has 32 letters so that every random byte maps to one without bias.
const idAlphabet = "abcdefghijklmnopqrstuvwxyz234567"

// newID returns a fresh template id: 20 random characters.
func newID() string {
	raw := make([]byte, 20)
	_, _ = rand.Read(raw) // documented never to fail
	for i, b := range raw {
		raw[i] = idAlphabet[b%32]
	}
	return string(raw)
}
