package head

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// Authority is for whom a request is: a name or an address, and a port. The
// zero Authority is nobody.
type Authority struct {
	// Name is the host as the client wrote it when it is no address. It need not
	// be a valid name.
	Name string
	// Addr is the host when it is an address.
	Addr netip.Addr
	// Port is 0 when there is none.
	Port uint16
}

// String returns the authority as an URL or a Host field has it.
func (a Authority) String() string {
	host := a.Name
	switch {
	case a.Addr.Is6():
		host = "[" + a.Addr.String() + "]"
	case a.Addr.IsValid():
		host = a.Addr.String()
	}
	if a.Port == 0 {
		return host
	}
	return host + ":" + strconv.Itoa(int(a.Port))
}

// setAuthority reads the target and the Host field, which must agree.
func (r *Request) setAuthority(target string, host []string) error {
	switch {
	case len(host) > 1:
		return bad("there is more than one Host")
	case len(host) == 0 && r.Minor > 0:
		return bad("there is no Host")
	case r.Method == http.MethodConnect:
		return &Error{http.StatusMethodNotAllowed, "this is not a proxy: CONNECT is refused"}
	}
	if len(host) == 1 {
		var err error
		if r.Authority, err = parseAuthority(host[0]); err != nil {
			return err
		}
	}
	switch {
	case strings.HasPrefix(target, "/"):
		r.Target = target
	case target == "*" && r.Method == http.MethodOptions:
		r.Target = target
	default:
		return r.setAbsolute(target, len(host) == 1)
	}
	return nil
}

// setAbsolute reads a target that is a whole URL.
func (r *Request) setAbsolute(target string, hasHost bool) error {
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok {
		return bad("the target %.40q is neither a path nor an URL", target)
	}
	if !strings.EqualFold(scheme, "http") {
		return bad("the target is an URL of scheme %.20q, only http is spoken here", scheme)
	}
	end := len(rest)
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		end = i
	}
	named, err := parseAuthority(rest[:end])
	switch {
	case err != nil:
		return err
	case named == Authority{}:
		return bad("the target %.40q names no host", target)
	case hasHost && !named.same(r.Authority):
		return bad("the target is for %.100q and Host for %.100q", named, r.Authority)
	}
	r.Authority = named
	r.Target = rest[end:]
	if !strings.HasPrefix(r.Target, "/") {
		r.Target = "/" + r.Target
	}
	return nil
}

const defaultPort = 80

func (a Authority) same(b Authority) bool {
	if a.Port == 0 {
		a.Port = defaultPort
	}
	if b.Port == 0 {
		b.Port = defaultPort
	}
	return strings.EqualFold(a.Name, b.Name) && a.Addr == b.Addr && a.Port == b.Port
}

// ParseAuthority reads what HTTP/2 has in place of the Host field, in the same
// way. The error is an *Error.
func ParseAuthority(s string) (Authority, error) { return parseAuthority(s) }

// parseAuthority reads "host", "host:port", or the same with an IPv6 address in
// brackets. An empty text is nobody.
func parseAuthority(s string) (a Authority, err error) {
	if s == "" {
		return a, nil
	}
	host, port, hasPort := s, "", false
	if inner, isIPv6 := strings.CutPrefix(s, "["); isIPv6 {
		host, port, isIPv6 = strings.Cut(inner, "]")
		a.Addr, err = netip.ParseAddr(host)
		if err != nil || !isIPv6 || !a.Addr.Is6() || a.Addr.Zone() != "" || port != "" && port[0] != ':' {
			return Authority{}, bad("the host %.100q is not an IPv6 address in brackets", s)
		}
		port, hasPort = strings.CutPrefix(port, ":")
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		if !isHost(host) {
			return Authority{}, bad("the host %.100q is not a name", s)
		}
		if a.Addr, err = netip.ParseAddr(host); err != nil {
			a.Name = host
		}
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || strconv.Itoa(int(n)) != port {
			return Authority{}, bad("the host %.100q has no valid port", s)
		}
		a.Port = uint16(n)
	}
	return a, nil
}

// isHost reports whether something can be a name or an IPv4 address at all.
// Whether it is a valid name is for others to say; here are refused only bytes
// that mean something else in a URL, or to one of two readers.
func isHost(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' && c < 0x80 {
			return false
		}
	}
	return s != ""
}
