package policy

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/moat-sandbox/moat/internal/secret"
)

// EgressProxy is a SOCKS5 proxy through which a sandbox's TCP flows leave.
type EgressProxy struct {
	Address  string `json:"address"` // host:port
	Username string `json:"username,omitempty"`
	// Password is not part of the document's JSON: see Document.Secrets.
	Password secret.String `json:"-"`
}

// Upstream is an EgressProxy, read. Its address is judged when it is dialled,
// by the never-reachable table, as any other.
type Upstream struct {
	// Name is the proxy's name, or Addr is its address.
	Name     Name
	Addr     netip.Addr
	Port     uint16
	Username string
	Password secret.String
}

// Upstream returns the proxy that all TCP flows have to take, after they were
// judged like any other. While it cannot be reached they fail: there is no
// other way out.
func (p *Policy) Upstream() (Upstream, bool) {
	if p == nil || p.upstream == nil {
		return Upstream{}, false
	}
	return *p.upstream, true
}

// StrictDNS reports whether names that may not be reached do not exist.
func (p *Policy) StrictDNS() bool { return p != nil && p.strictDNS }

// maxCredential is what fits into a SOCKS5 message, in bytes (RFC 1929).
const maxCredential = 255

func upstreamError(format string, args ...any) *SettingError {
	return &SettingError{Field: fieldEgressProxy, Text: "Invalid egress proxy config: " + fmt.Sprintf(format, args...)}
}

func (e *EgressProxy) compile(never *Never) (*Upstream, error) {
	u := &Upstream{Username: e.Username, Password: e.Password}
	host, digits, err := net.SplitHostPort(e.Address)
	if err != nil {
		return nil, upstreamError("address %s is not host:port", printable(e.Address))
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 {
		return nil, upstreamError("address %s has no port between 1 and 65535", printable(e.Address))
	}
	u.Port = uint16(port)
	if u.Addr, err = netip.ParseAddr(host); err == nil {
		if u.Addr.Zone() != "" || never.Contains(u.Addr) {
			return nil, upstreamError("%s is never reachable", printable(host))
		}
	} else if u.Name, err = ParseName(host); err != nil {
		return nil, upstreamError("%v", err)
	}
	switch {
	case len(e.Username) > maxCredential || len(e.Password.Reveal()) > maxCredential:
		return nil, upstreamError("username and password can have at most %d bytes", maxCredential)
	case e.Username == "" && !e.Password.Empty():
		return nil, upstreamError("there is a password but no username")
	}
	return u, nil
}
