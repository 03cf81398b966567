package ingress

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/internal/ingress/link"
)

// The cookies that a link is exchanged for. Browsers take the first only over
// TLS, and neither from another host nor for one; without TLS they would not
// take it at all.
const (
	secureCookie = "__Host-moat-link"
	plainCookie  = "moat-link"
)

// maxCookies bounds the work for a request with many cookies of our name, which
// over plain HTTP a neighbouring host can plant.
const maxCookies = 8

// linkCookie is the cookie that counts on a request's connection.
func linkCookie(r *http.Request) string {
	if r.TLS != nil {
		return secureCookie
	}
	return plainCookie
}

// linkCookies returns the values of the link cookie.
func linkCookies(r *http.Request) []string {
	var values []string
	for _, c := range r.CookiesNamed(linkCookie(r)) {
		if len(values) < maxCookies {
			values = append(values, c.Value)
		}
	}
	return values
}

// stripCookies removes both link cookies and leaves all others as they are.
func stripCookies(h http.Header) {
	lines := h["Cookie"]
	var kept []string
	for _, line := range lines {
		if !strings.Contains(line, plainCookie) { // part of both names
			kept = append(kept, line)
			continue
		}
		var others []string
		for pair := range strings.SplitSeq(line, ";") {
			name, _, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if name = strings.TrimSpace(name); name != secureCookie && name != plainCookie {
				others = append(others, pair)
			}
		}
		if line = strings.TrimSpace(strings.Join(others, ";")); line != "" {
			kept = append(kept, line)
		}
	}
	if len(kept) > 0 {
		h["Cookie"] = kept
	} else {
		delete(h, "Cookie")
	}
}

// cutLink takes links out of a raw query and leaves the rest as it is.
func cutLink(query string) (rest string, values []string) {
	if !strings.Contains(query, link.Parameter) {
		return query, nil
	}
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		if name, value, _ := strings.Cut(pair, "="); name == link.Parameter {
			values = append(values, value)
		} else {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&"), values
}

// followLink exchanges a link for a cookie and sends the browser on to the same
// URL without it; false means that the request does not come by a link.
func (x *exchange) followLink(w http.ResponseWriter) (bool, *failure) {
	r := x.request
	rest, values := cutLink(r.URL.RawQuery)
	navigates := r.Method == http.MethodGet || r.Method == http.MethodHead
	if len(values) == 0 || x.route.by != byHost || !navigates {
		return false, nil
	}
	if !x.target.public(x.route.port) {
		now := time.Now()
		if len(values) > 1 {
			return false, linkInvalid(x.route.address)
		}
		g, err := link.URL.Verify(x.target.LinkKey, x.route.id, x.route.port, values[0], now)
		switch {
		case errors.Is(err, link.ErrExpired):
			return false, linkExpired(x.route.address)
		case err != nil:
			return false, linkInvalid(x.route.address)
		}
		http.SetCookie(w, &http.Cookie{
			Name:     linkCookie(r),
			Value:    link.Cookie.Sign(x.target.LinkKey, g),
			Path:     "/",
			MaxAge:   max(int(g.Expires.Sub(now)/time.Second), 1),
			Secure:   r.TLS != nil,
			HttpOnly: true,
			// Strict would keep the cookie back from the redirect below when
			// the link was found on another site.
			SameSite: http.SameSiteLaxMode,
		})
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Location", localURL(r.URL.EscapedPath(), rest))
	w.WriteHeader(http.StatusSeeOther)
	return true, nil
}

// localURL writes a path and a query so that a browser finds no host in them.
func localURL(path, query string) string {
	if len(path) > 1 && (path[1] == '/' || path[1] == '\\') {
		path = "/." + path // "//x/" would be host x
	}
	if query != "" {
		path += "?" + query
	}
	return path
}

// fromOwnPage reports whether a request that a cookie authorises is made by a
// page of the same port, or by a person who opens one. SameSite does not do:
// the hosts of all sandboxes are of one site.
func fromOwnPage(r *http.Request) bool {
	origins := r.Header["Origin"]
	switch {
	case len(origins) > 0:
		if len(origins) > 1 || !isOwnOrigin(origins[0], r) {
			return false
		}
	case !isSafe(r.Method) || r.Header.Get("Upgrade") != "":
		return false // browsers always say who wants to write or upgrade
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin": // an old browser, a person, or a page of the port's own
		return true
	}
	// A link on another site may be followed, but nothing of the app may be
	// drawn into another page.
	return isSafe(r.Method) && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

func isSafe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead
}

// isOwnOrigin compares an Origin with the host of a request. What came over TLS
// has an https origin; what did not may have come over TLS to a balancer.
func isOwnOrigin(origin string, r *http.Request) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "https" && (u.Scheme != "http" || r.TLS != nil) {
		return false
	}
	if u.Scheme+"://"+u.Host != origin {
		return false
	}
	standard := ":80"
	if u.Scheme == "https" {
		standard = ":443"
	}
	return lower(strings.TrimSuffix(u.Host, standard)) == lower(strings.TrimSuffix(r.Host, standard))
}

// isPreflight reports whether a browser asks for leave to send another request.
// It cannot send a credential with the question.
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && len(r.Header["Origin"]) == 1 && len(r.Header["Access-Control-Request-Method"]) == 1
}

// preflightAge is how long, in seconds, a browser may remember the answer.
const preflightAge = "600"

// answerPreflight lets any page send the request it asks for, if without
// cookies: it will need the token, and whoever has that may use it. Whether the
// page may read the app's answer is for the app to say.
func answerPreflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h["Access-Control-Allow-Methods"] = r.Header["Access-Control-Request-Method"]
	if wanted := r.Header["Access-Control-Request-Headers"]; len(wanted) > 0 {
		h["Access-Control-Allow-Headers"] = wanted
	}
	h.Set("Access-Control-Max-Age", preflightAge)
	h.Set("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
	w.WriteHeader(http.StatusNoContent)
}
