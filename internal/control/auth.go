package control

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// keyForm is what E2B's SDKs take for an API key before they send it.
var keyForm = regexp.MustCompile(`^e2b_[0-9a-f]+$`)

// maxKey bounds the length of an API key.
const maxKey = 200

// authenticate finds the team of the request's API key. It costs one hash and
// one lookup, whether the key is right or wrong.
func (a *API) authenticate(r *http.Request) (team string, err error) {
	presented, given := presentedKey(r)
	if !given {
		return a.anonymous(r)
	}
	if len(presented) > maxKey || !keyForm.MatchString(presented) {
		return "", unauthorized("Invalid API key: it is not of the form e2b_ and hexadecimal digits")
	}
	key, err := a.Store.KeyByHash(r.Context(), secret.Hash(presented))
	if errors.Is(err, store.ErrNotFound) {
		return "", unauthorized("Invalid API key: this server has not issued it, or it was deleted")
	}
	if err != nil {
		return "", err
	}
	return key.Team, nil
}

// anonymous finds the team of a request without a key, where the operator lets
// there be one.
//
// Such a request could also come from a web page that somebody's browser shows,
// perhaps a sandbox's: to it, a server on the loopback address is near. Browsers
// add the page's origin to whatever changes something or lets another page read
// the answer, and say what site asks; unless the page's own domain was made to
// lead here, but then that is the host.
func (a *API) anonymous(r *http.Request) (team string, err error) {
	switch {
	case a.Anonymous == "":
		return "", unauthorized("API key is missing: send it in the X-API-Key header")
	case len(r.Header.Values("Origin"))+len(r.Header.Values("Sec-Fetch-Site")) > 0:
		return "", unauthorized("API key is missing: web pages need one")
	case !a.isOwnHost(r.Host):
		return "", unauthorized("API key is missing: without one this server must be called by its address, localhost or its own domain")
	}
	return a.Anonymous, nil
}

// isOwnHost reports whether a host can only mean this server.
func (a *API) isOwnHost(host string) bool {
	name, own := strings.ToLower(hostname(host)), hostname(a.Domain)
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return name == "localhost" || strings.HasSuffix(name, ".localhost") ||
		own != "" && (name == own || strings.HasSuffix(name, "."+own))
}

// hostname takes the port from a host, where there is one, and the brackets
// from an address.
func hostname(host string) string {
	u := url.URL{Host: host}
	return u.Hostname()
}

// authenticateOperator lets the operator act without a key. One that is sent
// still counts.
func (a *API) authenticateOperator(r *http.Request) (team string, err error) {
	if _, given := presentedKey(r); !given {
		return api.DefaultTeam, nil
	}
	return a.authenticate(r)
}

// presentedKey reads the key from X-API-Key or else from Authorization. Once a
// header is there it decides, however odd its value is.
func presentedKey(r *http.Request) (key string, given bool) {
	if keys := r.Header.Values(api.HeaderAPIKey); len(keys) > 0 {
		if len(keys) > 1 {
			return "", true
		}
		return keys[0], true
	}
	authorization := r.Header.Values("Authorization")
	if len(authorization) == 0 {
		return "", false
	}
	scheme, token, _ := strings.Cut(authorization[0], " ")
	if len(authorization) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return "", true
	}
	return token, true
}

func unauthorized(message string) *fault {
	return &fault{status: http.StatusUnauthorized, message: message}
}

// IsKey reports whether a value is one of this server's API keys, for those who
// must keep keys from leaking. In doubt it is one.
func (a *API) IsKey(value string) bool {
	if len(value) > maxKey || !keyForm.MatchString(value) {
		return false
	}
	_, err := a.Store.KeyByHash(context.Background(), secret.Hash(value))
	return !errors.Is(err, store.ErrNotFound)
}
