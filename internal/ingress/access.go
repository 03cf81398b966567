package ingress

import (
	"errors"
	"net/http"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/ingress/link"
)

// The headers that carry tokens, in canonical form.
const (
	headerE2BToken   = "E2b-Traffic-Access-Token"
	headerCubeToken  = "Cube-Traffic-Access-Token"
	headerGuestToken = "X-Access-Token"
)

var tokenHeaders = []string{headerE2BToken, headerCubeToken, headerGuestToken}

// grant is why a request may reach a sandbox.
type grant struct {
	reason Reason
	until  time.Time // zero: for as long as the request takes
}

// admit decides whether a request may reach the sandbox. Without a failure it
// found the port public or a credential that holds, compared in constant time.
// It reads nothing of the request but what never changes, so that it can be
// asked again while the request is being served.
func (t Target) admit(rt route, r *http.Request, now time.Time) (grant, *failure) {
	if t.public(rt.port) {
		return grant{reason: ByEverybody}, nil
	}
	if rt.port == api.GuestPort && single(r.Header[headerGuestToken], t.GuestToken.Equal) {
		return grant{reason: ByGuestToken}, nil
	}
	// E2B's header decides when it is there at all: a right value in the
	// other one does not rescue a wrong value here.
	for _, name := range []string{headerE2BToken, headerCubeToken} {
		values, present := r.Header[name]
		switch {
		case !present:
			continue
		case single(values, t.Token.Equal):
			return grant{reason: ByToken}, nil
		}
		return grant{}, tokenInvalid(rt.address, name)
	}
	// On a host that sandboxes share, a page of one of them could use a cookie
	// that was meant for another.
	if rt.by == byHost {
		return t.admitCookie(rt, r, now)
	}
	return grant{}, tokenMissing(rt.address)
}

// admitCookie looks for a cookie that a link was exchanged for.
func (t Target) admitCookie(rt route, r *http.Request, now time.Time) (grant, *failure) {
	fail := tokenMissing(rt.address)
	for _, value := range linkCookies(r) {
		g, err := link.Cookie.Verify(t.LinkKey, rt.id, rt.port, value, now)
		switch {
		case err == nil:
			if !fromOwnPage(r) {
				return grant{}, crossSite(rt.address)
			}
			return grant{reason: ByLink, until: g.Expires}, nil
		case errors.Is(err, link.ErrExpired):
			fail = linkExpired(rt.address)
		case fail.Code != codeLinkExpired:
			fail = linkInvalid(rt.address)
		}
	}
	return grant{}, fail
}

// single reports whether there is exactly one value and it is ok. A header
// given twice could mean one thing here and another behind us.
func single(values []string, ok func(string) bool) bool {
	return len(values) == 1 && ok(values[0])
}
