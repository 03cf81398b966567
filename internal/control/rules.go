package control

import (
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// This file reads and shows rules about requests and the upstream proxy. Nothing
// here repeats a value that was sent: each may be a credential.

// hostRule is api.HostRule as it comes in. Members that nobody reads are
// refused: they could be what the caller relies on.
type hostRule struct {
	Transform *struct {
		Headers          map[string]secretText `json:"headers"`
		StripCredentials bool                  `json:"stripCredentials"`
		Strict           bool                  `json:"strict"`
	} `json:"transform"`
}

// orderedRule is api.OrderedRule as it comes in.
type orderedRule struct {
	Name   string    `json:"name"`
	Match  api.Match `json:"match"`
	Action *struct {
		Allow            *bool  `json:"allow"`
		Audit            string `json:"audit"`
		StripCredentials bool   `json:"stripCredentials"`
		Inject           []struct {
			Header string     `json:"header"`
			Secret secretText `json:"secret"`
			Format string     `json:"format"`
		} `json:"inject"`
	} `json:"action"`
}

// secretText is a string of a body that no error may show.
type secretText string

// saysRules reports whether there is something about rules, if only that there
// shall be none.
func (n *networkBody) saysRules() bool { return n.Rules != nil && n.Rules.Kind() != 'n' }

// rules reads network.rules of either shape; prefix is where it stands.
func (n *networkBody) rules(prefix string) (policy.Rules, error) {
	field := prefix + "rules"
	switch raw := n.Rules; raw.Kind() {
	case 0, 'n':
		return policy.Rules{}, nil
	case '{':
		return readHosts(field, raw)
	case '[':
		return readOrdered(field, raw)
	default:
		return policy.Rules{}, badRequest("%s must be an object or a list, got %s", field, kindName(raw.Kind()))
	}
}

func readHosts(field string, raw jsontext.Value) (policy.Rules, error) {
	var given map[string][]hostRule
	if err := decodeSecret(field, raw, &given); err != nil {
		return policy.Rules{}, err
	}
	var rules policy.Rules
	for _, host := range slices.Sorted(maps.Keys(given)) {
		if len(given[host]) > 1 {
			return policy.Rules{}, badRequest("Domain %q can have at most 1 transform rule.", clip(host))
		}
		rule := policy.HostRule{Host: host}
		for _, r := range given[host] {
			if r.Transform == nil {
				continue
			}
			rule.StripCredentials, rule.Strict = r.Transform.StripCredentials, r.Transform.Strict
			for _, name := range slices.Sorted(maps.Keys(r.Transform.Headers)) {
				header, err := newHeader(field, name, string(r.Transform.Headers[name]))
				if err != nil {
					return policy.Rules{}, err
				}
				rule.Headers = append(rule.Headers, header)
			}
		}
		rules.Hosts = append(rules.Hosts, rule)
	}
	return rules, nil
}

// placeSecret is where Cube's format has the secret.
const placeSecret = "${SECRET}"

func readOrdered(field string, raw jsontext.Value) (policy.Rules, error) {
	var given []orderedRule
	if err := decodeSecret(field, raw, &given); err != nil {
		return policy.Rules{}, err
	}
	var rules policy.Rules
	for i, g := range given {
		if g.Action == nil || g.Action.Allow == nil {
			return policy.Rules{}, badRequest("%s[%d].action.allow is required", field, i)
		}
		rule := policy.OrderedRule{
			Name: g.Name, Allow: *g.Action.Allow, Audit: g.Action.Audit, StripCredentials: g.Action.StripCredentials,
			Match: policy.Match{
				SNI: g.Match.SNI, Host: g.Match.Host, Methods: g.Match.Method,
				Path: g.Match.Path, Scheme: g.Match.Scheme, Port: g.Match.Port,
			},
		}
		for j, inject := range g.Action.Inject {
			value := string(inject.Secret)
			if inject.Format != "" {
				if !strings.Contains(inject.Format, placeSecret) {
					return policy.Rules{}, badRequest("%s[%d].action.inject[%d].format has no %s in it", field, i, j, placeSecret)
				}
				value = strings.Replace(inject.Format, placeSecret, value, 1)
			}
			header, err := newHeader(field, inject.Header, value)
			if err != nil {
				return policy.Rules{}, err
			}
			rule.Inject = append(rule.Inject, header)
		}
		rules.Ordered = append(rules.Ordered, rule)
	}
	return rules, nil
}

// newHeader refuses what answers show in place of values: who reads a network
// and writes it back has lost them.
func newHeader(field, name, value string) (policy.Header, error) {
	if strings.Contains(value, api.Redacted) {
		return policy.Header{}, badRequest("%s: the value of header %s is %s, which stands for one that is not shown: give the value itself", field, clip(name), api.Redacted)
	}
	return policy.Header{Name: name, Value: secret.New(value)}, nil
}

// upstream reads network.egressProxy; prefix is where it stands.
func (n *networkBody) upstream(prefix string) (*policy.EgressProxy, error) {
	if n.EgressProxy == nil || n.EgressProxy.Kind() == 'n' {
		return nil, nil
	}
	var given struct {
		Address  *string     `json:"address"`
		Username string      `json:"username"`
		Password *secretText `json:"password"`
	}
	if err := decodeSecret(prefix+"egressProxy", n.EgressProxy, &given); err != nil {
		return nil, err
	}
	if given.Address == nil {
		return nil, badRequest("Invalid egress proxy config: address is required")
	}
	proxy := &policy.EgressProxy{Address: *given.Address, Username: given.Username}
	if given.Password != nil {
		proxy.Password = secret.New(string(*given.Password))
	}
	return proxy, nil
}

// decodeSecret reads one member of a body. Errors name the place, but nothing
// that stands there.
func decodeSecret(field string, raw jsontext.Value, target any) error {
	err := json.Unmarshal(raw, target, json.RejectUnknownMembers(true), withoutNulls())
	if err == nil {
		return nil
	}
	return explainSecret(field, err)
}

// compileNew compiles a document that a caller wants to be in force.
func (c *call) compileNew(doc policy.Document) (*policy.Policy, error) {
	compiled, err := c.Compile(doc)
	if err != nil {
		return nil, err
	}
	for _, name := range compiled.SecretNames() {
		if _, known := c.Secrets.Secret(c.team, name); !known {
			return nil, badRequest("Secret %q does not exist: set it before network.rules refers to it", name)
		}
	}
	return compiled, nil
}

// shownRules is what was said about requests, nil for nothing.
func shownRules(r policy.Rules) *api.Rules {
	switch {
	case len(r.Hosts) > 0:
		hosts := make(map[string][]api.HostRule, len(r.Hosts))
		for _, h := range r.Hosts {
			transform := api.Transform{StripCredentials: h.StripCredentials, Strict: h.Strict}
			for _, header := range h.Headers {
				if transform.Headers == nil {
					transform.Headers = map[string]string{}
				}
				transform.Headers[header.Name] = api.Redacted
			}
			hosts[h.Host] = []api.HostRule{{Transform: transform}}
		}
		return &api.Rules{Hosts: hosts}
	case len(r.Ordered) > 0:
		var all []api.OrderedRule
		for _, o := range r.Ordered {
			rule := api.OrderedRule{
				Name: o.Name,
				Match: api.Match{
					SNI: o.Match.SNI, Host: o.Match.Host, Method: o.Match.Methods,
					Path: o.Match.Path, Scheme: o.Match.Scheme, Port: o.Match.Port,
				},
				Action: api.Action{Allow: o.Allow, Audit: o.Audit, StripCredentials: o.StripCredentials},
			}
			for _, header := range o.Inject {
				rule.Action.Inject = append(rule.Action.Inject, api.Inject{Header: header.Name, Secret: api.Redacted})
			}
			all = append(all, rule)
		}
		return &api.Rules{Ordered: all}
	}
	return nil
}

// shownProxy leaves out the password.
func shownProxy(e *policy.EgressProxy) *api.EgressProxy {
	if e == nil {
		return nil
	}
	return &api.EgressProxy{Address: e.Address, Username: e.Username}
}
