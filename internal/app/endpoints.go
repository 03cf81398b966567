package app

import (
	"net"

	"github.com/moat-sandbox/moat/internal/secret"
)

// endpoints says where the server is reached, by the addresses actually bound.
func endpoints(c Config, open *listeners, key secret.String) Endpoints {
	e := Endpoints{Domain: c.Domain, Key: key}
	switch {
	case open.http != nil:
		e.APIURL = "http://" + reachable(open.http.Addr())
	case open.https != nil:
		e.APIURL = "https://api." + c.Domain
	}
	e.SandboxURL = e.APIURL
	return e
}

// scheme is how the public hosts below the domain are reached. The domain's port
// tells by which listener; a domain without a port that no listener has stands
// for something in front of this server, which speaks TLS for it.
func scheme(c Config) string {
	_, port, _ := net.SplitHostPort(c.Domain)
	switch {
	case c.HTTPS == "" && c.HTTP != "" && (port != "" || portOf(c.HTTP) == "80"):
		return "http"
	case c.HTTPS != "" && port != "" && port != portOf(c.HTTPS) && port == portOf(c.HTTP):
		return "http"
	}
	return "https"
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address) // none: no port
	return port
}

// reachable turns a wildcard address into one that a client on this machine can
// dial.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if ok && tcp.IP.IsUnspecified() {
		return (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: tcp.Port}).String()
	}
	return addr.String()
}

func hostOnly(domain string) string {
	if host, _, err := net.SplitHostPort(domain); err == nil {
		return host
	}
	return domain
}
