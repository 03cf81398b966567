// Package link signs and checks what lets a browser into a private sandbox. A
// browser cannot send a token header by itself, so it is given a link: a URL of
// one port of one sandbox with a signed parameter that expires. The ingress
// exchanges the parameter for a cookie that is signed the same way.
//
// Both are worth nothing without the key, which belongs to one sandbox and
// changes with its traffic token: a new token revokes every link and cookie.
package link

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/internal/secret"
)

// Parameter is the name of the query parameter that holds a link's signature.
const Parameter = "moat-link"

// MaxLife is how long a link may be good for: who needs more has the token.
const MaxLife = 7 * 24 * time.Hour

// Errors of Verify.
var (
	ErrInvalid = errors.New("the link is not valid")
	ErrExpired = errors.New("the link has expired")
)

// Grant is what a link gives: a port of a sandbox, until it expires.
type Grant struct {
	Sandbox string
	Port    uint16
	Expires time.Time // fractions of a second do not count
}

// Use is where a signature is good. One made for a URL is no cookie.
type Use string

// The two uses.
const (
	URL    Use = "url"
	Cookie Use = "cookie"
)

// New returns the URL parameter, "moat-link=<signature>", that opens a port of
// a sandbox for life from now. It goes into the query of a URL of that port,
// after whatever else is there.
func New(key secret.String, sandbox string, port uint16, life time.Duration) (string, Grant, error) {
	g := Grant{Sandbox: sandbox, Port: port, Expires: time.Now().Add(life).Truncate(time.Second)}
	switch {
	case key.Empty():
		return "", Grant{}, errors.New("make link: the sandbox has no key for links")
	case port == 0:
		return "", Grant{}, errors.New("make link: port 0 cannot be reached")
	case life < time.Second || life > MaxLife:
		return "", Grant{}, fmt.Errorf("make link: life %v is not between 1s and %v", life, MaxLife)
	}
	return Parameter + "=" + URL.Sign(key, g), g, nil
}

// Sign returns "<expiry in Unix seconds>.<256-bit MAC>", which needs no quoting
// in URLs and cookies.
func (u Use) Sign(key secret.String, g Grant) string {
	mac := hmac.New(sha256.New, []byte(key.Reveal()))
	expires := g.Expires.Unix()
	fmt.Fprintf(mac, "moat link 1\n%s\n%q\n%d\n%d", u, g.Sandbox, g.Port, expires)
	return strconv.FormatInt(expires, 10) + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Verify returns the grant that value proves, for a port of a sandbox at a
// time. Only what was once valid is called expired. Without a key nothing is
// valid.
func (u Use) Verify(key secret.String, sandbox string, port uint16, value string, now time.Time) (Grant, error) {
	text, _, _ := strings.Cut(value, ".")
	expires, err := strconv.ParseInt(text, 10, 64)
	if err != nil || key.Empty() {
		return Grant{}, ErrInvalid
	}
	g := Grant{Sandbox: sandbox, Port: port, Expires: time.Unix(expires, 0)}
	// The whole text is compared, so that a grant has one spelling only.
	if subtle.ConstantTimeCompare([]byte(u.Sign(key, g)), []byte(value)) != 1 {
		return Grant{}, ErrInvalid
	}
	if !now.Before(g.Expires) {
		return Grant{}, ErrExpired
	}
	return g, nil
}
