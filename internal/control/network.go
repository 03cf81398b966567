package control

import (
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// networkBody is api.Network with everything else a client may send, nil for
// nothing. Cube also takes some of it in snake case.
type networkBody struct {
	api.Network
	SnakeAllowOut []string `json:"allow_out"`
	SnakeDenyOut  []string `json:"deny_out"`
	SnakePublic   *bool    `json:"allow_public_traffic"`
	SnakeMask     *string  `json:"mask_request_host"`
	// These two take the place of api.Network's: what is secret is read with care.
	Rules       jsontext.Value            `json:"rules"`
	EgressProxy jsontext.Value            `json:"egressProxy"`
	Rest        map[string]jsontext.Value `json:",embed"`
}

// networkUpdate is the body of an update: the network object itself with the
// internet flag, in both spellings, inside.
type networkUpdate struct {
	networkBody
	AllowInternetAccess *bool `json:"allow_internet_access"`
	CamelInternet       *bool `json:"allowInternetAccess"`
}

func updateNetwork(c *call) error {
	if err := c.sandboxID(); err != nil {
		return err
	}
	var body networkUpdate
	if err := c.body(&body, false); err != nil {
		return err
	}
	internet, err := agree("allow_internet_access", body.AllowInternetAccess, "allowInternetAccess", body.CamelInternet)
	if err != nil {
		return err
	}
	said, err := body.traffic("")
	if err != nil {
		return err
	}
	document, err := body.translate("", internet)
	if err != nil {
		return err
	}
	change := sandbox.NetworkChange{Internet: internet}
	if change.IfGeneration, err = c.ifMatch(); err != nil {
		return err
	}
	if change.KeepGrants, err = c.keepGrants(); err != nil {
		return err
	}
	record, err := c.sandbox()
	if err != nil {
		return err
	}
	change.Document, change.KeepRules = body.inPlaceOf(record.Network, document)
	if _, err := c.compileNew(change.Document); err != nil {
		return err
	}
	if err := said.keeps(record.Ingress); err != nil {
		return err
	}
	ctx, cancel := c.lasting()
	defer cancel()
	receipt, err := c.Engine.SetNetwork(ctx, c.id, change)
	if err != nil {
		return err
	}
	c.showReceipt(receipt)
	return c.done()
}

// inPlaceOf is the document that an update makes of the old one. An update
// replaces lists. E2B's rules are settled at create: to say nothing of them
// leaves them alone, while Cube's are cleared like all else.
func (n *networkUpdate) inPlaceOf(old, document policy.Document) (_ policy.Document, keepRules bool) {
	keepRules = !n.saysRules() && len(old.Rules.Hosts) > 0
	if keepRules {
		document.Rules = old.Rules
	}
	return document, keepRules
}

// keepGrants says whether temporary grants outlive the update. E2B's clients do
// not know of them, and mean what they send to be all there is.
func (c *call) keepGrants() (bool, error) {
	q, err := c.query()
	if err != nil {
		return false, err
	}
	switch text := q.get("grants"); text {
	case "", "end":
		return false, nil
	case "keep":
		return true, nil
	default:
		return false, badRequest("grants must be keep or end, got %q", clip(text))
	}
}

// translate makes the document and refuses what it cannot express. prefix is
// where the settings stand in the request's body.
func (n *networkBody) translate(prefix string, internet *bool) (policy.Document, error) {
	if n == nil {
		return policy.Document{Default: defaultVerdict(internet)}, nil
	}
	if err := refuseUnknown(prefix, n.Rest); err != nil {
		return policy.Document{}, err
	}
	document := policy.Document{Default: defaultVerdict(internet)}
	var err error
	document.AllowOut, err = agreeLists(prefix, "allowOut", n.AllowOut, "allow_out", n.SnakeAllowOut)
	if err != nil {
		return policy.Document{}, err
	}
	document.DenyOut, err = agreeLists(prefix, "denyOut", n.DenyOut, "deny_out", n.SnakeDenyOut)
	if err != nil {
		return policy.Document{}, err
	}
	if document.Rules, err = n.rules(prefix); err != nil {
		return policy.Document{}, err
	}
	if document.EgressProxy, err = n.upstream(prefix); err != nil {
		return policy.Document{}, err
	}
	document.StrictDNS, err = strictDNS(prefix, n.DNS)
	return document, err
}

// strictDNS reads what becomes of names that may not be reached.
func strictDNS(prefix string, mode api.DNS) (bool, error) {
	switch mode {
	case "", api.DNSSynthetic:
		return false, nil
	case api.DNSStrict:
		return true, nil
	}
	return false, badRequest("%sdns must be %q or %q, got %q", prefix, api.DNSSynthetic, api.DNSStrict, clip(string(mode)))
}

// defaultVerdict is E2B's promise: open unless internet access was switched
// off. The engine itself has no such default.
func defaultVerdict(internet *bool) policy.Verdict {
	if internet != nil && !*internet {
		return policy.Deny
	}
	return policy.Allow
}

func agreeLists(prefix, name string, a []string, alias string, b []string) ([]string, error) {
	switch {
	case a == nil:
		return b, nil
	case b != nil && !slices.Equal(a, b):
		return nil, badRequest("%s%s and %s%s differ", prefix, name, prefix, alias)
	}
	return a, nil
}
