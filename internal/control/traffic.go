package control

import (
	"maps"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// This file is about traffic from outside into sandboxes.

// traffic is what a request says about it; nil is silence.
type traffic struct {
	public *bool
	mask   *string
	ports  map[uint16]bool
	https  []uint16
}

// traffic reads the settings. prefix is where they stand in the request's body.
func (n *networkBody) traffic(prefix string) (said traffic, err error) {
	if n == nil {
		return traffic{}, nil
	}
	said.public, err = agree(prefix+"allowPublicTraffic", n.AllowPublicTraffic, prefix+"allow_public_traffic", n.SnakePublic)
	if err != nil {
		return traffic{}, err
	}
	said.mask, err = agree(prefix+"maskRequestHost", n.MaskRequestHost, prefix+"mask_request_host", n.SnakeMask)
	if err != nil {
		return traffic{}, err
	}
	if said.ports, err = visiblePorts(prefix+"ports", n.Ports); err != nil {
		return traffic{}, err
	}
	said.https, err = httpsPorts(prefix+"httpsPorts", n.HTTPSPorts)
	return said, err
}

// ingress is E2B's promise: open to everybody unless somebody said otherwise.
func (t traffic) ingress() (sandbox.Ingress, error) {
	ingress := sandbox.Ingress{
		Public: t.public == nil || *t.public, AllowPublicTraffic: t.public,
		Ports: t.ports, HTTPSPorts: t.https,
	}
	if t.mask == nil || *t.mask == "" {
		return ingress, nil
	}
	ingress.MaskHost = *t.mask
	return ingress, checkMask(*t.mask)
}

// keeps refuses to change what is settled at create; saying it again is fine.
func (t traffic) keeps(s sandbox.Ingress) error {
	const settled = "%s cannot be changed after the sandbox is created: it is %v"
	switch {
	case t.public != nil && *t.public != s.Public:
		return badRequest(settled, "allowPublicTraffic", s.Public)
	case t.mask != nil && *t.mask != s.MaskHost:
		return badRequest(settled, "maskRequestHost", strconv.Quote(s.MaskHost))
	case t.ports != nil && !maps.Equal(t.ports, s.Ports):
		return badRequest("ports cannot be changed after the sandbox is created")
	case t.https != nil && !slices.Equal(t.https, s.HTTPSPorts):
		return badRequest("httpsPorts cannot be changed after the sandbox is created")
	}
	return nil
}

// maxPorts bounds the lists of ports: they are part of the record.
const maxPorts = 1000

func visiblePorts(field string, given map[string]api.Visibility) (map[uint16]bool, error) {
	if given == nil {
		return nil, nil
	}
	if len(given) > maxPorts {
		return nil, badRequest("%s has %d entries, at most %d are accepted", field, len(given), maxPorts)
	}
	ports := make(map[uint16]bool, len(given))
	for _, text := range slices.Sorted(maps.Keys(given)) {
		number, err := strconv.Atoi(text)
		if err != nil || strconv.Itoa(number) != text { // 080 and +80 are 80 only to some
			return nil, badRequest("%s: %q is not a port from 1 to 65535", field, clip(text))
		}
		port, err := appPort(field, number)
		if err != nil {
			return nil, err
		}
		switch visibility := given[text]; visibility {
		case api.Public, api.Private:
			ports[port] = visibility == api.Public
		default:
			return nil, badRequest("%s[%d] must be %q or %q, got %q", field, port, api.Public, api.Private, clip(string(visibility)))
		}
	}
	return ports, nil
}

func httpsPorts(field string, given []int) ([]uint16, error) {
	if given == nil {
		return nil, nil
	}
	if len(given) > maxPorts {
		return nil, badRequest("%s has %d entries, at most %d are accepted", field, len(given), maxPorts)
	}
	ports := make([]uint16, 0, len(given))
	for _, number := range given {
		port, err := appPort(field, number)
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// appPort takes the ports of programs, not that of the guest daemon.
func appPort(field string, number int) (uint16, error) {
	switch {
	case number < 1 || number > 65535:
		return 0, badRequest("%s: %d is not a port from 1 to 65535", field, number)
	case number == api.GuestPort:
		return 0, badRequest("%s: %d is the port of the sandbox's own daemon", field, number)
	}
	return uint16(number), nil
}

// maskForm takes a host apart: an IPv6 address in brackets or anything else,
// then a port.
var maskForm = regexp.MustCompile(`^(?:\[([^\]%]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?$`)

// maskNames checks names as E2B does, and that they fit into DNS.
var maskNames = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

// checkMask takes a host with or without a port, in which "${PORT}" stands for
// a port. The messages are E2B's.
func checkMask(mask string) error {
	invalid := badRequest("mask request host is not valid: %s", clip(mask))
	// With the longest port: what fits then fits with every other.
	parts := maskForm.FindStringSubmatch(strings.ReplaceAll(mask, "${PORT}", "65535"))
	if parts == nil {
		return invalid
	}
	address, name, port := parts[1], parts[2], parts[3]
	if n, err := strconv.ParseUint(port, 10, 16); port != "" && (err != nil || n == 0) {
		return invalid
	}
	if name == "" {
		if addr, err := netip.ParseAddr(address); err != nil || !addr.Is6() {
			return invalid
		}
		return nil
	}
	if _, err := maskNames.ToASCII(name); err != nil {
		return invalid
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r > unicode.MaxASCII }) {
		return badRequest("mask request host '%s' is not ASCII. Please use ASCII characters only.", clip(name))
	}
	return nil
}

// guard decides whether a new sandbox's daemon asks for a token. given is the
// field "secure".
type guard func(given *bool, private bool) (secure bool, err error)

// guardV1: in E2B's first dialect the daemon is open unless secure is true, and
// to restrict public traffic is refused then, because the daemon would be the
// way around. CubeSandbox's clients know no such field: who does not say a word
// about it gets a daemon that is no way around.
func guardV1(given *bool, private bool) (secure bool, err error) {
	switch {
	case given == nil:
		return private, nil
	case !*given && private:
		return false, badRequest("You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag.")
	}
	return *given, nil
}

// guardV2 ignores secure, as E2B does: these sandboxes always are.
func guardV2(*bool, bool) (secure bool, err error) { return true, nil }

// rotateTrafficToken is the only way but create and connect by which a token
// leaves the server.
func rotateTrafficToken(c *call) error {
	if err := c.sandboxID(); err != nil {
		return err
	}
	if err := c.body(&struct{}{}, true); err != nil {
		return err
	}
	if _, err := c.sandbox(); err != nil {
		return err
	}
	ctx, cancel := c.lasting()
	defer cancel()
	token, err := c.Engine.RotateTrafficToken(ctx, c.id)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, api.TrafficToken{TrafficAccessToken: token.Reveal()})
}
