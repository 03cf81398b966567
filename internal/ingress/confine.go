package ingress

import (
	"net/http"
	"net/url"
	"strings"
)

// originWide are the headers of an answer that would hold for every path of the
// host it came from. On a host that is shared that is not one app's to say.
var originWide = []string{
	"Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "Nel", "Report-To",
}

// confine keeps an answer of the path route below its prefix: the app does not
// know of it, or may not care.
func (x *exchange) confine(answer *http.Response) {
	if x.route.by != byPath {
		return
	}
	h := answer.Header
	for _, name := range originWide {
		h.Del(name)
	}
	if to := h["Location"]; len(to) == 1 {
		to[0] = localize(to[0], x.route.prefix, x.request.Host, answer.Request.Host)
	}
	for i, cookie := range h["Set-Cookie"] {
		h["Set-Cookie"][i] = confineCookie(cookie, x.route.prefix)
	}
}

// localize puts a redirect to one of the app's own hosts below prefix.
// Redirects elsewhere, and those relative to the page, stay.
func localize(location, prefix string, hosts ...string) string {
	u, err := url.Parse(location)
	if err != nil {
		return location
	}
	path := location
	switch {
	case u.Host != "" && (u.Scheme == "" || u.Scheme == "http" || u.Scheme == "https"):
		own := false
		for _, host := range hosts {
			own = own || lower(host) == lower(u.Host)
		}
		if !own {
			return location
		}
		_, path, _ = strings.Cut(location, "//")
		if i := strings.IndexAny(path, "/?#"); i >= 0 {
			path = path[i:]
		} else {
			path = ""
		}
	case u.Scheme != "" || !strings.HasPrefix(location, "/"):
		return location
	}
	if below(path, prefix) {
		return path
	}
	return prefix + "/" + strings.TrimPrefix(path, "/")
}

// below reports whether a path is prefix, or leads on from it.
func below(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || strings.ContainsAny(rest[:1], "/?#"))
}

// confineCookie keeps the browser from sending an app's cookie to other apps:
// its path is put below prefix, and it stays with the host. Without a path a
// cookie already stays below the page that set it.
func confineCookie(cookie, prefix string) string {
	pairs := strings.Split(cookie, ";")
	kept := pairs[:1]
	for _, pair := range pairs[1:] {
		name, value, _ := strings.Cut(pair, "=")
		value = strings.TrimSpace(value)
		switch lower(strings.TrimSpace(name)) {
		case "domain":
			continue
		case "path":
			if strings.HasPrefix(value, "/") && !below(value, prefix) {
				pair = " Path=" + prefix + value
			}
		}
		kept = append(kept, pair)
	}
	return strings.Join(kept, ";")
}

// addSlash sends a browser from a path that names a port to the port's root,
// from where relative links lead on.
func (x *exchange) addSlash(w http.ResponseWriter) {
	to := x.route.prefix + "/"
	if query := x.request.URL.RawQuery; query != "" {
		to += "?" + query
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Location", to)
	w.WriteHeader(http.StatusTemporaryRedirect)
}
