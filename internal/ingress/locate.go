package ingress

import (
	"fmt"
	"net/http"
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

// locate says which port of which sandbox a request is for; false without a
// failure means that it is for the API.
func (in *Ingress) locate(r *http.Request) (address, bool, *failure) {
	kind, addr, err := parseHost(r.Host, in.domain)
	if err != nil {
		return address{}, false, badHost(err)
	}
	if kind != sharedHost {
		return addr, kind == sandboxHost, nil
	}
	ids, ports := r.Header[headerID], r.Header[headerPort]
	if len(ids) == 0 && len(ports) == 0 {
		return address{}, false, nil
	}
	addr, fail := parseHeaders(ids, ports)
	return addr, fail == nil, fail
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

// checkRequest refuses what must not reach a sandbox whatever its address.
func checkRequest(r *http.Request, addr address) *failure {
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
	case addr.port == api.GuestPort && isReserved(r.URL.Path):
		return reservedPath(r.URL.Path)
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
