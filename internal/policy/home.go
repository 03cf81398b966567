package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
)

// Home says which names lead to this server's own public URLs. They are
// destinations on the internet like any other, judged by name; only the way there
// is another, because the machine's own addresses are never reachable. It is
// immutable; a nil *Home has no public URLs.
type Home struct {
	public func(name string) bool
	ports  map[uint16]uint16
}

// NewHome returns the public URLs whose hosts public recognises, in the form that
// Name has. Ports are where they are, each with PortHTTP or PortHTTPS: as which of
// the two it is judged.
func NewHome(public func(name string) bool, ports map[uint16]uint16) (*Home, error) {
	if public == nil {
		return nil, errors.New("public URLs: nothing says which names they have")
	}
	for port, as := range ports {
		if as != PortHTTP && as != PortHTTPS {
			return nil, fmt.Errorf("public URLs: port %d is judged as %d, want %d or %d", port, as, PortHTTP, PortHTTPS)
		}
		if (port == PortHTTP || port == PortHTTPS) && as != port {
			return nil, fmt.Errorf("public URLs: port %d is judged as %d", port, as)
		}
	}
	return &Home{public: public, ports: maps.Clone(ports)}, nil
}

// HomeAddrs returns the addresses to which the names of public URLs resolve in a
// sandbox. They are part of the never-reachable table: nothing is behind them but
// the proxy, which judges by name.
func HomeAddrs() (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{198, 19, 255, 2}),
		netip.AddrFrom16([16]byte{0xfd, 0x6d, 0x6f, 0x61, 0x74, 0, 0, 1, 15: 2})
}

// isHome reports whether an address is one of HomeAddrs.
func isHome(addr netip.Addr) bool {
	v4, v6 := HomeAddrs()
	return addr == v4 || addr == v6
}

// IsPublicURL reports whether a name is that of a public URL of this server,
// whatever the port. It says nothing about whether it may be reached.
func (p *Policy) IsPublicURL(name Name) bool {
	return p != nil && p.home != nil && name != Name{} && p.home.public(name.text)
}

// HomePort returns as which of PortHTTP and PortHTTPS a port of a public URL is
// judged; 0 if nothing is there, or the name is of no public URL.
func (p *Policy) HomePort(name Name, port uint16) uint16 {
	if p == nil || p.home == nil || p.home.ports[port] == 0 || !p.IsPublicURL(name) {
		return 0
	}
	return p.home.ports[port]
}

// WebPort returns as which of PortHTTP and PortHTTPS a connection is read to
// learn its name; 0 if names do not count where it goes.
func (p *Policy) WebPort(dst netip.AddrPort) uint16 {
	switch port := dst.Port(); {
	case port == PortHTTP || port == PortHTTPS:
		return port
	case p != nil && p.home != nil && isHome(dst.Addr()):
		return p.home.ports[port]
	}
	return 0
}

// countsAs returns as which of PortHTTP and PortHTTPS a port of a name is judged,
// and the port itself where names do not count.
func (p *Policy) countsAs(name Name, port uint16) uint16 {
	if as := p.HomePort(name, port); as != 0 {
		return as
	}
	return port
}
