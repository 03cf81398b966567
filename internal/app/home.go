package app

import (
	"crypto/tls"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moat-sandbox/moat/internal/egress/dial"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// home is how sandboxes get to the public URLs of this server, whose addresses
// they never reach. Kernel and resolver send them to the proxy, which judges by
// name and then comes here. The zero value is no way at all: public URLs are looked
// up and dialled like all else then.
type home struct {
	urls  *policy.Home
	names kernel.PublicNames
	ways  map[uint16]*dial.Inward // by policy.PortHTTP and policy.PortHTTPS
}

// openHome opens a way for each of the public listeners that there are. Where
// something in front of this server speaks TLS for it, public URLs are its, and so
// is the way there.
func openHome(c Config, open *listeners) (h home, err error) {
	if scheme(c) == "https" && open.https == nil {
		return home{}, nil
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	domain := strings.ToLower(hostOnly(c.Domain))
	h.urls, err = policy.NewHome(func(name string) bool { return ingress.IsPublic(name, domain) }, homePorts(c, open))
	if err != nil {
		return home{}, err
	}
	h.names = kernel.PublicNames{Below: domain, Shortest: ingress.ShortestLabel, Longest: ingress.LongestLabel}
	h.ways = make(map[uint16]*dial.Inward)
	for as, listener := range open.public() {
		if listener == nil {
			continue
		}
		if h.ways[as], err = dial.NewInward(); err != nil {
			return h, err
		}
	}
	return h, nil
}

// homePorts are the ports of public URLs: those of the listeners, and what the
// domain says, which may be those of something that forwards to them.
func homePorts(c Config, open *listeners) map[uint16]uint16 {
	ports := make(map[uint16]uint16)
	_, port, _ := net.SplitHostPort(c.Domain) // none: no port
	for as, listener := range open.public() {
		if listener == nil {
			continue
		}
		if own, err := netip.ParseAddrPort(listener.Addr().String()); err == nil {
			ports[own.Port()] = as
		}
		if port == "" {
			ports[as] = as
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		ports[uint16(n)] = map[string]uint16{"http": policy.PortHTTP, "https": policy.PortHTTPS}[scheme(c)]
	}
	for _, as := range []uint16{policy.PortHTTP, policy.PortHTTPS} {
		if ports[as] != as {
			delete(ports, as) // names are read as everywhere there
		}
	}
	return ports
}

// listeners are the doors for those who come this way.
func (h home) listeners(secure *tls.Config) (open []net.Listener) {
	for as, way := range h.ways {
		if as == policy.PortHTTPS {
			open = append(open, tls.NewListener(way, secure))
		} else {
			open = append(open, way)
		}
	}
	return open
}

func (h home) close() {
	for _, way := range h.ways {
		_ = way.Close() // twice, if it has been served
	}
}
