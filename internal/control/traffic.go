package control

import (
	"net/http"
	"net/netip"
	"regexp"
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
}

// traffic reads both spellings of each setting. prefix is where they stand in
// the request's body.
func (n *networkBody) traffic(prefix string) (said traffic, err error) {
	if n == nil {
		return traffic{}, nil
	}
	said.public, err = agree(prefix+"allowPublicTraffic", n.AllowPublicTraffic, prefix+"allow_public_traffic", n.SnakePublic)
	if err != nil {
		return traffic{}, err
	}
	said.mask, err = agree(prefix+"maskRequestHost", n.MaskRequestHost, prefix+"mask_request_host", n.SnakeMask)
	return said, err
}

// ingress is E2B's promise: open to everybody unless somebody said otherwise.
func (t traffic) ingress() (sandbox.Ingress, error) {
	ingress := sandbox.Ingress{Public: t.public == nil || *t.public, AllowPublicTraffic: t.public}
	if t.mask == nil || *t.mask == "" {
		return ingress, nil
	}
	ingress.MaskHost = *t.mask
	return ingress, checkMask(*t.mask)
}

// keeps refuses to change what is settled at create; saying it again is fine.
func (t traffic) keeps(s sandbox.Ingress) error {
	if t.public != nil && *t.public != s.Public {
		return badRequest("allowPublicTraffic cannot be changed after the sandbox is created: it is %t", s.Public)
	}
	if t.mask != nil && *t.mask != s.MaskHost {
		return badRequest("maskRequestHost cannot be changed after the sandbox is created: it is %q", s.MaskHost)
	}
	return nil
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
type guard func(given *bool, public bool) (secure bool, err error)

// guardV1: in E2B's first dialect the daemon is open unless secure is true, and
// to restrict public traffic is refused then, because the daemon would be the
// way around. CubeSandbox's clients know no such field: who does not say a word
// about it gets a daemon that is no way around.
func guardV1(given *bool, public bool) (secure bool, err error) {
	switch {
	case given == nil:
		return !public, nil
	case !*given && !public:
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
