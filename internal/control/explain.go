package control

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// questionBody is api.Question with the candidate as an update may come.
type questionBody struct {
	api.Question
	Candidate *networkUpdate            `json:"candidate"`
	Rest      map[string]jsontext.Value `json:",embed"`
}

// explainNetwork asks a sandbox's policy about a flow, and a candidate that
// could take its place. They answer as what enforces them does, which is made
// from the same value; nothing is sent.
func explainNetwork(c *call) error {
	var body questionBody
	if err := c.sandboxBody(&body, &body.Rest); err != nil {
		return err
	}
	asked, given, err := readQuestion(body.Question)
	if err != nil {
		return err
	}
	if !given && body.Candidate == nil {
		return badRequest("one of url, host, address and candidate is needed")
	}
	record, err := c.sandbox()
	if err != nil {
		return err
	}
	candidate, err := c.compileCandidate(body.Candidate, record)
	if err != nil {
		return err
	}
	now := time.Now()
	compiled, err := c.inForce(record, now)
	if err != nil {
		return err
	}
	answer := api.Explanation{Generation: record.Generation}
	if given {
		decision := asked.decide(compiled)
		answer.Decision, answer.Grant = decision.view(), grantOf(record, decision.Decision, now)
	}
	if body.Candidate == nil {
		return c.reply(http.StatusOK, answer)
	}
	if given {
		decision := asked.decide(candidate).view()
		answer.Candidate = &decision
	}
	answer.Replay = c.replay(candidate)
	return c.reply(http.StatusOK, answer)
}

// compileCandidate makes a policy of a document as an update of the old one
// would, and refuses what that would refuse.
func (c *call) compileCandidate(body *networkUpdate, of store.Sandbox) (*policy.Policy, error) {
	if body == nil {
		return nil, nil
	}
	internet, err := agree("candidate.allow_internet_access", body.AllowInternetAccess, "candidate.allowInternetAccess", body.CamelInternet)
	if err != nil {
		return nil, err
	}
	said, err := body.traffic("candidate.")
	if err == nil {
		err = said.keeps(of.Ingress)
	}
	if err != nil {
		return nil, err
	}
	document, err := body.translate("candidate.", internet)
	if err != nil {
		return nil, err
	}
	document, _ = body.inPlaceOf(of.Network, document)
	return c.compileNew(document)
}

// question is a flow that somebody asks about.
type question struct {
	proto policy.Proto
	dns   bool
	name  policy.Name    // the zero Name for a flow that has none
	dst   netip.AddrPort // without an address where that is not known
	// request is what is asked for on the flow; without scheme for nothing.
	request policy.Request
	// recorded says that all that there was on the flow is known.
	recorded bool
}

func (q question) decideFlow(p *policy.Policy) policy.Decision {
	switch {
	case q.dns:
		return p.DecideQuery(q.name)
	case q.name == policy.Name{}:
		return p.Decide(policy.Flow{Proto: q.proto, Dst: q.dst})
	}
	return p.DecideFlow(q.name, policy.Flow{Proto: q.proto, Dst: q.dst})
}

// readQuestion reads what is asked, if anything is.
func readQuestion(body api.Question) (q question, given bool, err error) {
	method, err := readMethod(body.Method)
	if err != nil {
		return q, false, err
	}
	var asked *url.URL
	if body.URL != "" {
		if body, asked, err = fromURL(body); err != nil {
			return q, false, err
		}
	} else if body.Method != "" {
		return q, false, badRequest("method needs url")
	}
	if body.Host == "" && body.Address == "" {
		if body.Port != 0 || body.Protocol != "" {
			return q, false, badRequest("host or address is needed with port and protocol")
		}
		return q, false, nil
	}
	var addr netip.Addr
	if body.Address != "" {
		addr, err = netip.ParseAddr(body.Address)
		if err != nil || addr.Zone() != "" {
			return q, false, badRequest("address %q is not an IPv4 or IPv6 address", clip(body.Address))
		}
	}
	if body.Host != "" {
		if q.name, err = policy.ParseName(body.Host); err != nil {
			return q, false, badRequest("host %q is not a domain name: %v", clip(body.Host), err)
		}
	}
	if body.Port < 0 || body.Port > 65535 {
		return q, false, badRequest("port %d is not between 0 and 65535", body.Port)
	}
	q.dst = netip.AddrPortFrom(addr, uint16(body.Port))
	if err := q.speak(body); err != nil {
		return q, false, err
	}
	if asked != nil {
		q.request = requestTo(asked, method, q)
	}
	return q, true, nil
}

// speak reads the protocol.
func (q *question) speak(body api.Question) error {
	switch body.Protocol {
	case "", "tcp":
		q.proto = policy.TCP
	case "udp":
		q.proto = policy.UDP
	case "icmp":
		q.proto = policy.ICMP
	case "dns":
		q.dns = true
		if body.Host == "" || body.Address != "" || body.Port != 0 {
			return badRequest("protocol dns needs a host, and neither address nor port")
		}
	default:
		return badRequest("protocol %q is none of tcp, udp, icmp and dns", clip(body.Protocol))
	}
	return nil
}

// fromURL puts what a URL says in its place.
func fromURL(body api.Question) (api.Question, *url.URL, error) {
	if body.Host != "" || body.Port != 0 || body.Protocol != "" {
		return body, nil, badRequest("url excludes host, port and protocol")
	}
	u, err := url.Parse(body.URL)
	ports := map[string]int64{"http": 80, "ws": 80, "https": 443, "wss": 443}
	if err != nil || ports[u.Scheme] == 0 || u.Hostname() == "" {
		return body, nil, badRequest("url is not one of http or https with a host") // it may hold a secret
	}
	body.Port = ports[u.Scheme]
	if text := u.Port(); text != "" {
		if body.Port, err = strconv.ParseInt(text, 10, 32); err != nil {
			return body, nil, badRequest("url has no port between 0 and 65535")
		}
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		if body.Address != "" {
			return body, nil, badRequest("address excludes a url with an address in it")
		}
		body.Address = addr.String()
	} else {
		body.Host = u.Hostname()
	}
	return body, u, nil
}

// grantOf finds the grant that allows what the document alone does not.
func grantOf(record store.Sandbox, d policy.Decision, now time.Time) *api.Grant {
	if d.Rule != policy.RuleAllowOut || slices.Contains(record.Network.AllowOut, d.Entry) {
		return nil
	}
	for _, g := range sandbox.ActiveGrants(record.Grants, now) {
		if slices.Contains(g.AllowOut, d.Entry) {
			view := grantView(g)
			return &view
		}
	}
	return nil
}
