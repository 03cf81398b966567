package ingress

import (
	"net/http"

	"github.com/moat-sandbox/moat/api"
)

// The headers that carry tokens, in canonical form.
const (
	headerE2BToken   = "E2b-Traffic-Access-Token"
	headerCubeToken  = "Cube-Traffic-Access-Token"
	headerGuestToken = "X-Access-Token"
)

// admit decides whether a request may reach the sandbox. It returns nil only
// for a public sandbox or a token that matches, compared in constant time.
func (t Target) admit(addr address, h http.Header) *failure {
	if t.Public {
		return nil
	}
	if addr.port == api.GuestPort && single(h[headerGuestToken], t.GuestToken.Equal) {
		return nil
	}
	// E2B's header decides when it is there at all: a right value in the
	// other one does not rescue a wrong value here.
	for _, name := range []string{headerE2BToken, headerCubeToken} {
		values, present := h[name]
		switch {
		case !present:
			continue
		case single(values, t.Token.Equal):
			return nil
		}
		return tokenInvalid(addr, name)
	}
	return tokenMissing(addr)
}

// single reports whether there is exactly one value and it is ok. A header
// given twice could mean one thing here and another behind us.
func single(values []string, ok func(string) bool) bool {
	return len(values) == 1 && ok(values[0])
}
