package policy

import (
	"maps"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
)

// ports is a set of the places where rules count.
type ports uint8

const (
	onHTTP  ports = 1 << iota // HTTP on port 80
	onHTTPS                   // HTTPS on port 443
)

// portsOf is empty where rules do not count.
func portsOf(scheme string, port uint16) ports {
	switch {
	case scheme == schemeHTTP && port == PortHTTP:
		return onHTTP
	case scheme == schemeHTTPS && port == PortHTTPS:
		return onHTTPS
	}
	return 0
}

// portsAt is where a flow to a port meets rules.
func portsAt(port uint16) ports {
	switch port {
	case PortHTTP:
		return onHTTP
	case PortHTTPS:
		return onHTTPS
	}
	return 0
}

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
)

// ruleset is Rules of either shape, compiled: which rules to try for a host,
// in which order. Finding them costs the same however many rules there are.
type ruleset struct {
	hosts index[*hosted]
	addrs map[netip.Addr]*hosted
	opens bool // some name
	// terminated are the hosts with rules on HTTPS, in the order of the document.
	terminated []string
	secrets    []string  // the names of all, sorted
	changed    []pattern // the hosts of E2B's shape, in the order of the document
}

// hosted are the rules for the hosts that one pattern covers and no narrower
// one does.
type hosted struct {
	entry string // a pattern, as written
	rules []*compiledRule
	// decides is where these rules judge every request, opens where they make
	// the hosts reachable.
	decides, opens ports
}

// compiledRule is a rule of either shape.
type compiledRule struct {
	name    string
	allow   bool
	on      ports
	methods []string // empty: all
	path    string   // empty: all
	prefix  bool     // path stands for all paths that begin so
	inject  []Injection
	strip   bool
	audit   Audit
}

func (s *ruleset) empty() bool {
	return s == nil || len(s.hosts.exact)+len(s.hosts.below)+len(s.addrs) == 0
}

// add stores the rules for the hosts that a pattern covers.
func (s *ruleset) add(p pattern, h *hosted) {
	s.hosts.Insert(p, h)
	s.opens = s.opens || h.opens != 0
	if h.decides&onHTTPS != 0 {
		s.terminated = append(s.terminated, p.String())
	}
}

// collectSecrets notes which secrets the rules refer to.
func (s *ruleset) collectSecrets() {
	names := map[string]bool{}
	for _, hosts := range []map[string]*hosted{s.hosts.exact, s.hosts.below} {
		for _, h := range hosts {
			for _, rule := range h.rules {
				for _, injection := range rule.inject {
					for name := range injection.Value.Secrets() {
						names[name] = true
					}
				}
			}
		}
	}
	s.secrets = slices.Sorted(maps.Keys(names))
}

// find returns the rules for a host, nil for none.
func (s *ruleset) find(name Name, addr netip.Addr) *hosted {
	if s == nil {
		return nil
	}
	if addr.IsValid() {
		return s.addrs[addr]
	}
	h, _ := s.hosts.Lookup(name.text)
	return h
}

// apply finds the rule that decides about a request.
func (h *hosted) apply(r Request, on ports, a Action) Action {
	where := ""
	for _, rule := range h.rules {
		if rule.on&on == 0 || !rule.matchesMethod(r.Method) {
			continue
		}
		if rule.path != "" && where == "" {
			var valid bool
			if where, valid = cleanPath(r.Path); !valid {
				a.why = badPath
				return a
			}
		}
		if !rule.matchesPath(where) {
			continue
		}
		a.why, a.Rule, a.Audit = byRule, rule.name, rule.audit
		if rule.allow {
			a.Verdict, a.Inject, a.Strip = Allow, rule.inject, rule.strip
		}
		return a
	}
	a.why = noMatch
	return a
}

func (c *compiledRule) matchesMethod(method string) bool {
	return len(c.methods) == 0 || slices.ContainsFunc(c.methods, func(m string) bool { return strings.EqualFold(m, method) })
}

func (c *compiledRule) matchesPath(path string) bool {
	if c.prefix {
		return strings.HasPrefix(path, c.path)
	}
	return c.path == "" || c.path == path
}

// cleanPath decodes a path once and takes out empty, . and .. segments, as
// servers do before they look at it. What servers read differently is no valid
// path: bad escapes, control characters and backslashes.
func cleanPath(raw string) (clean string, valid bool) {
	if !strings.ContainsRune(raw, '%') {
		clean = raw
	} else if decoded, err := url.PathUnescape(raw); err == nil {
		clean = decoded
	}
	if clean == "*" { // of an OPTIONS request
		return clean, true
	}
	if !strings.HasPrefix(clean, "/") || strings.ContainsFunc(clean, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return "", false
	}
	if !strings.Contains(clean, "//") && !strings.Contains(clean, "/.") {
		return clean, true
	}
	dir := strings.HasSuffix(clean, "/") || strings.HasSuffix(clean, "/.") || strings.HasSuffix(clean, "/..")
	if clean = path.Clean(clean); dir && clean != "/" {
		clean += "/"
	}
	return clean, true
}
