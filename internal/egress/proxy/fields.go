package proxy

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/moat-sandbox/moat/internal/egress/proxy/head"
)

// endToEnd returns the fields of a message that are not about the connection it
// came over (RFC 9110, section 7.6.1).
func endToEnd(h http.Header) http.Header {
	out := h.Clone()
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			out.Del(strings.Trim(name, " \t"))
		}
	}
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
	} {
		delete(out, name)
	}
	return out
}

// keepsAlive reports whether a client expects to use its connection again.
func keepsAlive(r *head.Request) bool {
	connection := r.Header["Connection"]
	if r.Minor == 0 {
		return httpguts.HeaderValuesContainsToken(connection, "keep-alive")
	}
	return !httpguts.HeaderValuesContainsToken(connection, "close")
}

// upgrades returns the protocols that a client offers to change to, but for
// other versions of HTTP: requests in those would not be judged.
func upgrades(h http.Header) string {
	if !httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade") {
		return ""
	}
	var kept []string
	for _, list := range h["Upgrade"] {
		for name := range strings.SplitSeq(list, ",") {
			name = strings.Trim(name, " \t")
			lower := strings.ToLower(name)
			if name != "" && !strings.HasPrefix(lower, "h2") && !strings.HasPrefix(lower, "http") {
				kept = append(kept, name)
			}
		}
	}
	return strings.Join(kept, ", ")
}
