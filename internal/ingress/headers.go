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
	return strings.HasPrefix(name, "X-Forwarded-")
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
