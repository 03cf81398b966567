package ingress

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/moat-sandbox/moat/api"
)

// The headers that choose a sandbox on a shared host, in canonical form.
const (
	headerID   = "E2b-Sandbox-Id"
	headerPort = "E2b-Sandbox-Port"
)

// route is how a request names a port of a sandbox.
type route struct {
	address
	by routing
	// prefix is the part of the path that names the sandbox; only byPath.
	prefix string
}

// routing says where a route was found.
type routing uint8

const (
	// toAPI is no route to a sandbox at all.
	toAPI routing = iota
	// byHost is the sandbox's own host. To browsers it is an origin that the
	// port shares with nothing else.
	byHost
	// byHeader and byPath share their host with every sandbox and the API.
	byHeader
	byPath
)

// locate says where a request leads.
func (in *Ingress) locate(r *http.Request) (route, *failure) {
	kind, addr, err := parseHost(r.Host, in.domain)
	switch {
	case err != nil:
		return route{}, badHost(err)
	case in.api == nil && (kind != sandboxHost || r.TLS != nil && !isFor(r.Host, r.TLS.ServerName)):
		return route{}, misdirected()
	}
	if kind == sandboxHost {
		return route{address: addr, by: byHost}, nil
	}
	ids, ports := r.Header[headerID], r.Header[headerPort]
	if kind == sharedHost && len(ids)+len(ports) > 0 {
		addr, fail := parseHeaders(ids, ports)
		return route{address: addr, by: byHeader}, fail
	}
	if rest, ok := strings.CutPrefix(r.URL.EscapedPath(), pathStart); ok {
		return parsePath(rest)
	}
	return route{by: toAPI}, nil
}

// isFor reports whether a Host header is about the name that a TLS connection was
// opened for.
func isFor(host, serverName string) bool {
	return lower(strings.TrimSuffix(stripPort(host), ".")) == lower(serverName)
}

// parseHeaders reads the routing headers, of which at least one is there.
func parseHeaders(ids, ports []string) (address, *failure) {
	switch {
	case len(ids) == 0:
		return address{}, missingHeader(headerID)
	case len(ports) == 0:
		return address{}, missingHeader(headerPort)
	case len(ids) > 1:
		return address{}, badHost(fmt.Errorf("header %s is given %d times", headerID, len(ids)))
	case len(ports) > 1:
		return address{}, badHost(fmt.Errorf("header %s is given %d times", headerPort, len(ports)))
	}
	id, err := parseID(ids[0])
	if err != nil {
		return address{}, badHost(fmt.Errorf("header %s: %w", headerID, err))
	}
	port, err := parsePort(ports[0])
	if err != nil {
		return address{}, badHost(fmt.Errorf("header %s: %w", headerPort, err))
	}
	return address{id: id, port: port}, nil
}

// pathStart is what the path begins with when it names a sandbox.
const pathStart = "/sandbox/"

// parsePath reads "<id>/<port>/…", which is still escaped. What it accepts has
// one spelling: whoever else reads the same path finds the same sandbox in it.
func parsePath(escaped string) (route, *failure) {
	name, rest, _ := strings.Cut(escaped, "/")
	digits, rest, _ := strings.Cut(rest, "/")
	id, err := parseID(name)
	if err != nil {
		return route{}, badPath(err)
	}
	port, err := parsePort(digits)
	if err != nil {
		return route{}, badPath(err)
	}
	if climbs(rest) {
		return route{}, badPath(errors.New("the path leads out of the sandbox"))
	}
	return route{address: address{id: id, port: port}, by: byPath, prefix: pathStart + name + "/" + digits}, nil
}

// climbs reports whether a path leads above where it starts, for any reader:
// one that takes an escaped slash or a backslash for a separator, and one that
// does not.
func climbs(escaped string) bool {
	depth := 0
	for segment := range strings.SplitSeq(escaped, "/") {
		decoded, err := url.PathUnescape(segment)
		if err != nil {
			return true
		}
		ups, named := 0, false
		for part := range strings.FieldsFuncSeq(decoded, func(c rune) bool { return c == '/' || c == '\\' }) {
			switch part {
			case "..":
				ups++
			case ".":
			default:
				named = true
			}
		}
		// A segment that goes up anywhere counts for no step down.
		if depth -= ups; depth < 0 {
			return true
		}
		if named && ups == 0 {
			depth++
		}
	}
	return false
}

// checkRequest refuses what must not reach a sandbox whatever its address.
func checkRequest(r *http.Request, rt route) *failure {
	decoded := strings.TrimPrefix(r.URL.Path, rt.prefix)
	switch {
	case r.Method == http.MethodConnect:
		return badRequest("CONNECT is for proxies; a sandbox is reached by its own host")
	case !httpguts.ValidHeaderFieldName(r.Method):
		// HTTP/2 carries the method as free text; in HTTP/1 it must be a token.
		return badRequest("the method is not a token")
	case strings.ContainsFunc(r.RequestURI, isBlank):
		// Likewise a space in an HTTP/2 path would end the path in HTTP/1.
		return badRequest("the path or query contains a blank or a control character")
	case r.RequestURI == "*" && r.Method != http.MethodOptions:
		return badRequest("\"*\" is a target for OPTIONS only")
	case rt.port == api.GuestPort && isReserved(decoded):
		return reservedPath(decoded)
	}
	return nil
}

func isBlank(c rune) bool { return c <= ' ' || c == 0x7f }

// isReserved reports whether a decoded path of the guest daemon, however it is
// written, is or lies below one that only this server may call.
func isReserved(decoded string) bool {
	first, _, _ := strings.Cut(path.Clean("/" + decoded)[1:], "/")
	switch first {
	case "init", "freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade":
		return true
	}
	return false
}
