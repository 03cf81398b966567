package ingress

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/moat-sandbox/moat/api"
)

// codePort is where the code interpreter listens in E2B's templates. Its SDK
// sends the guest's token there too, because the interpreter calls the guest.
const codePort = 49999

// cleanHeaders takes out what programs in the sandbox must not see: our own
// credentials, and what only we may say about where a request came from.
func (x *exchange) cleanHeaders(h http.Header) {
	x.cleanTrailers(h)
	stripCookies(h)
}

// cleanTrailers is for what comes after the body, which some programs take for
// headers: it must not say what headers may not.
func (x *exchange) cleanTrailers(t http.Header) {
	for name, values := range t {
		if x.isOurs(canonical(name), values) {
			delete(t, name)
		}
	}
}

func (x *exchange) isOurs(name string, values []string) bool {
	switch name {
	case headerID, headerPort, headerE2BToken, headerCubeToken:
		return true
	case "Forwarded", "X-Real-Ip":
		return true
	case headerGuestToken:
		// Other programs may have a header of this name; only the guest's own
		// token is taken from them.
		forGuest := x.route.port == api.GuestPort || x.route.port == codePort
		return !forGuest && slices.ContainsFunc(values, x.target.GuestToken.Equal)
	case "X-Api-Key":
		return slices.ContainsFunc(values, x.in.isKey)
	case "Authorization":
		return slices.ContainsFunc(values, x.in.isBearerKey)
	}
	return strings.HasPrefix(name, forwardPrefix)
}

// What isOurs says of a header: of some always the same.
var (
	alwaysOurs    = []string{headerE2BToken, headerCubeToken, headerID, headerPort, "Forwarded", "X-Real-Ip"}
	oursByValue   = []string{headerGuestToken, "X-Api-Key", "Authorization"}
	forwardPrefix = "X-Forwarded-"
)

// isOursPlain is isOurs for a header as it was written.
func (x *exchange) isOursPlain(name, value []byte) bool {
	if !mayBeOurs(name) {
		return false
	}
	if spelled(name, alwaysOurs) != "" {
		return true
	}
	if ours := spelled(name, oursByValue); ours != "" {
		return x.isOurs(ours, []string{string(value)})
	}
	return len(name) >= len(forwardPrefix) && strings.EqualFold(string(name[:len(forwardPrefix)]), forwardPrefix)
}

// spelled returns the one of some names that name is, in any case; "" when it is
// none of them.
func spelled(name []byte, names []string) string {
	for _, n := range names {
		if len(name) == len(n) && strings.EqualFold(string(name), n) {
			return n
		}
	}
	return ""
}

// mayBeOurs is true of every name that isOurs looks for, and of few others.
func mayBeOurs(name []byte) bool {
	switch name[0] | 0x20 {
	case 'x':
		return true
	case 'a':
		return len(name) == len("Authorization")
	case 'f':
		return len(name) == len("Forwarded")
	case 'e':
		return len(name) > 1 && name[1] == '2'
	case 'c':
		return len(name) > 1 && name[1]|0x20 == 'u'
	}
	return false
}

// isBearerKey looks at a value of the form "Bearer <key>".
func (in *Ingress) isBearerKey(value string) bool {
	scheme, key, _ := strings.Cut(value, " ")
	return strings.EqualFold(scheme, "Bearer") && in.isKey(strings.TrimSpace(key))
}

// canonical returns the name under which an app may file a header: CGI and
// WSGI make no difference between dashes and underscores.
func canonical(name string) string {
	if !strings.Contains(name, "_") {
		return name
	}
	return textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// cleanUpgrade drops the wish for another protocol where granting it would
// open a tunnel past us: the guest daemon has none to offer, and HTTP/2 inside
// HTTP/1.1 would carry requests that nobody here has looked at.
func (x *exchange) cleanUpgrade(h http.Header) {
	upgrade := h["Upgrade"]
	if x.route.port != api.GuestPort && !slices.ContainsFunc(upgrade, offersHTTP2) {
		return
	}
	h.Del("Upgrade")
	h.Del("Connection") // says nothing but "Upgrade" at this point
	h.Del("Http2-Settings")
}

func offersHTTP2(protocols string) bool {
	for protocol := range strings.SplitSeq(protocols, ",") {
		name, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(protocol)), "/")
		if name == "h2c" || name == "h2" || name == "http" {
			return true
		}
	}
	return false
}
