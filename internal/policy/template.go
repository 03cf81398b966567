package policy

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/moat-sandbox/moat/internal/secret"
)

// Secrets knows the secrets of teams. Implementations answer from memory and
// are safe for concurrent use: they are asked for every request.
type Secrets interface {
	// Secret returns false for a secret that the team does not have.
	Secret(team, name string) (secret.String, bool)
}

// Template is the value of a header: text, and names of secrets whose values
// stand there when a request is sent. The text may be a credential too, so no
// part of a template is ever printed. The zero Template has no value, and
// resolves to an error.
type Template struct {
	parts []part
	known bool
}

// part is text or, when name is set, a secret.
type part struct {
	text secret.String
	name string
}

// Errors of templates. They never repeat any of the text.
var (
	errPlaceholder = errors.New("contains a malformed E2B placeholder")
	errIdentity    = errors.New("refers to an identity token, ${e2b.identity.tokens...}: this server issues none")
	errValue       = errors.New("has a character that no header may have")
	errNoValue     = errors.New("the value of the header is not known")
)

// UnknownSecretError says that a header's value needs a secret that the team
// does not have.
type UnknownSecretError struct{ Name string }

// Error implements error.
func (e *UnknownSecretError) Error() string { return fmt.Sprintf("secret %q does not exist", e.Name) }

const (
	placeholder    = "${e2b."
	secretPrefix   = "secrets."
	identityPrefix = "identity.tokens."
)

// ParseTemplate reads the value of a header. ${e2b.secrets.NAME} stands for a
// secret; all else is text, but for other placeholders that begin as E2B's,
// which are refused.
func ParseTemplate(value secret.String) (Template, error) {
	t := Template{known: true}
	rest := value.Reveal()
	if !validValue(rest) {
		return Template{}, errValue
	}
	for {
		text, after, found := strings.Cut(rest, placeholder)
		if text != "" {
			t.parts = append(t.parts, part{text: secret.New(text)})
		}
		if !found {
			return t, nil
		}
		inside, after, closed := strings.Cut(after, "}")
		if strings.HasPrefix(inside, identityPrefix) {
			return Template{}, errIdentity
		}
		name, isSecret := strings.CutPrefix(inside, secretPrefix)
		if !closed || !isSecret {
			return Template{}, errPlaceholder
		}
		name, err := ParseSecretName(name)
		if err != nil {
			return Template{}, errPlaceholder
		}
		t.parts = append(t.parts, part{name: name})
		rest = after
	}
}

// Secrets yields the names of the secrets that the template refers to.
func (t Template) Secrets() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, p := range t.parts {
			if p.name != "" && !yield(p.name) {
				return
			}
		}
	}
}

// Resolve returns the value for a request of a team's sandbox, to be sent byte
// for byte. On any error the request must not be sent: *UnknownSecretError if
// the team lacks a secret.
func (t Template) Resolve(team string, from Secrets) (secret.String, error) {
	if !t.known {
		return secret.String{}, errNoValue
	}
	if len(t.parts) == 1 && t.parts[0].name == "" {
		return t.parts[0].text, nil
	}
	var b strings.Builder
	for _, p := range t.parts {
		text := p.text
		if p.name != "" {
			found := false
			if text, found = from.Secret(team, p.name); !found {
				return secret.String{}, &UnknownSecretError{Name: p.name}
			}
		}
		b.WriteString(text.Reveal())
	}
	if !validValue(b.String()) {
		return secret.String{}, errValue
	}
	return secret.New(b.String()), nil
}

// same reports whether two templates stand for the same values.
func (t Template) same(u Template) bool {
	return t.known == u.known && slices.EqualFunc(t.parts, u.parts, func(p, q part) bool {
		return p.name == q.name && p.text.Reveal() == q.text.Reveal()
	})
}

// validValue reports whether a header may have a value (RFC 9110, 5.5): no
// control characters but the tabulator, and no space at either end, which a
// recipient would strip.
func validValue(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return strings.Trim(s, " \t") == s
}

// MaxSecret bounds the value of a secret, in bytes.
const MaxSecret = 64 << 10

// CheckSecret says why a value cannot be a secret's: every header that refers to
// it must be able to carry it. The error completes the sentence "the value ...".
func CheckSecret(value secret.String) error {
	switch {
	case value.Empty():
		return errors.New("is empty")
	case len(value.Reveal()) > MaxSecret:
		return fmt.Errorf("has more than %d bytes", MaxSecret)
	case !validValue(value.Reveal()):
		return errors.New("has a control character, or a space at its beginning or end, which no header may have")
	}
	return nil
}

// MaxSecretName bounds the name of a secret, in bytes.
const MaxSecretName = 64

// ParseSecretName reads the name of a secret as it stands in a placeholder or
// in the API: spaces around it and upper case do not matter.
func ParseSecretName(s string) (string, error) {
	name := strings.ToLower(strings.TrimSpace(s))
	switch {
	case name == "":
		return "", errors.New("the name of a secret is empty")
	case len(name) > MaxSecretName:
		return "", fmt.Errorf("secret name %s is longer than %d characters", printable(name), MaxSecretName)
	case strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "":
		return "", fmt.Errorf("secret name %s may have letters, digits, - and _ only", printable(name))
	case strings.HasPrefix(name, "sec_"):
		return "", fmt.Errorf("secret name %s begins with sec_, as the ids of secrets do in E2B: use a name", printable(name))
	}
	return name, nil
}
