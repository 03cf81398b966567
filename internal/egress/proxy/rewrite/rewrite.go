// Package rewrite changes requests as the rules of a policy say: it takes the
// sandbox's own credentials out of them and puts headers in. What is put in is
// secret, and goes nowhere else.
package rewrite

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// Change is what is to be done to one request. The zero Change does nothing.
type Change struct {
	set   []field
	strip bool
}

type field struct {
	name  string
	value secret.String
}

// errFraming refuses headers that say how a request is to be read or where it
// goes. To set them would make a different request of it.
var errFraming = errors.New("a rule sets a header that belongs to the connection")

// New resolves the values of an action for a team's sandbox, at this moment.
// On any error the request must not be sent. The error may be shown to the
// sandbox.
func New(a policy.Action, team string, from policy.Secrets) (Change, error) {
	c := Change{strip: a.Strip}
	for _, inject := range a.Inject {
		if ofConnection(inject.Header) {
			return Change{}, errFraming
		}
		value, err := inject.Value.Resolve(team, from)
		if err != nil {
			return Change{}, fmt.Errorf("the header %s cannot be set: %w", inject.Header, err)
		}
		c.set = append(c.set, field{inject.Header, value})
	}
	return c, nil
}

func ofConnection(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Host", "Content-Length", "Transfer-Encoding", "Trailer", "Connection", "Keep-Alive", "Upgrade", "Te",
		"Proxy-Connection", "Http2-Settings", "Expect":
		return true
	}
	return false
}

// Names returns the names of the headers that are set, nil for none.
func (c Change) Names() []string {
	var names []string
	for _, f := range c.set {
		names = append(names, f.name)
	}
	return names
}

// Header changes the header of a request. What is set replaces all fields of
// that name.
func (c Change) Header(h http.Header) {
	c.remove(h)
	for _, f := range c.set {
		h[f.name] = []string{f.value.Reveal()}
	}
}

// Trailer removes from the fields that follow a body those that would add to
// what Header has set or removed.
func (c Change) Trailer(h http.Header) { c.remove(h) }

func (c Change) remove(h http.Header) {
	if len(c.set) == 0 && !c.strip {
		return
	}
	for key := range h {
		if c.removes(key) {
			delete(h, key)
		}
	}
}

func (c Change) removes(key string) bool {
	if c.strip && policy.CredentialHeader(strings.ReplaceAll(key, "_", "-")) {
		return true
	}
	for _, f := range c.set {
		if alike(f.name, key) {
			return true
		}
	}
	return false
}

// alike reports whether two names are of one header. Servers that hand headers
// to programs as variables do not tell an underscore from a dash, so neither is
// told here: the sandbox's own could win otherwise.
func alike(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if fold(a[i]) != fold(b[i]) {
			return false
		}
	}
	return true
}

func fold(c byte) byte {
	switch {
	case c == '_':
		return '-'
	case c >= 'A' && c <= 'Z':
		return c + 'a' - 'A'
	}
	return c
}

// Target changes a path with an optional query. All but the parameters that it
// removes stays byte for byte.
func (c Change) Target(target string) string {
	path, query, found := strings.Cut(target, "?")
	if !c.strip || !found {
		return target
	}
	var kept []string
	for parameter := range strings.SplitSeq(query, "&") {
		if !isCredential(parameter) {
			kept = append(kept, parameter)
		}
	}
	if len(kept) == 0 && query != "" {
		return path
	}
	return path + "?" + strings.Join(kept, "&")
}

// isCredential looks at NAME=VALUE. Some servers take a semicolon for another
// separator, so one credential behind such a one is enough.
func isCredential(parameter string) bool {
	for part := range strings.SplitSeq(parameter, ";") {
		name, _, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		if policy.CredentialParameter(strings.TrimSpace(name)) {
			return true
		}
	}
	return false
}
