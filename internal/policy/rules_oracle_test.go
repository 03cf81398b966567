package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// addRules adds rules of one shape, unless there are some.
func (w world) addRules(doc *policy.Document) {
	if len(doc.Rules.Hosts) > 0 {
		return
	}
	host := func() string {
		if w.IntN(3) == 0 {
			return "*." + w.name()
		}
		return w.name()
	}
	headers := func(i int) []policy.Header {
		return []policy.Header{{Name: "X-Rule", Value: secret.New(fmt.Sprint(i))}}
	}
	switch w.IntN(4) {
	case 0:
		taken := map[string]bool{}
		for i := range w.IntN(6) {
			if h := host(); !taken[h] {
				taken[h] = true
				doc.Rules.Hosts = append(doc.Rules.Hosts, policy.HostRule{Host: h, Headers: headers(i)})
			}
		}
	case 1, 2:
		for i := range w.IntN(8) {
			r := policy.OrderedRule{Name: fmt.Sprint(i), Allow: w.IntN(3) > 0, Inject: headers(i)}
			switch w.IntN(6) {
			case 0: // no host
			case 1:
				r.Match.SNI = host()
			default:
				r.Match.Host = host()
			}
			r.Match.Scheme = []string{"", "", "http", "https"}[w.IntN(4)]
			r.Match.Path = []string{"", "", "/a", "/a*", "/a/*", "*"}[w.IntN(6)]
			r.Match.Methods = [][]string{nil, {"GET"}, {"GET", "POST"}}[w.IntN(3)]
			doc.Rules.Ordered = append(doc.Rules.Ordered, r)
		}
	}
}

// applies says whether a rule's host, scheme and SNI fit, and whether it names
// a host at all.
func applies(m policy.Match, scheme, name string) (fits, named bool) {
	for _, pattern := range []string{m.Host, m.SNI} {
		if pattern != "" && !naiveCovers(pattern, name) {
			return false, true
		}
	}
	if m.SNI != "" && scheme == "http" || m.Scheme != "" && m.Scheme != scheme {
		return false, true
	}
	return true, m.Host+m.SNI != ""
}

// naiveRequest decides slowly and obviously: the verdict, and the rule if one
// decided.
func naiveRequest(doc policy.Document, r policy.Request) (allow bool, rule string) {
	name := r.Name.String()
	best := ""
	for _, h := range doc.Rules.Hosts {
		if h.Host == name {
			return true, h.Host
		}
		if strings.HasPrefix(h.Host, "*") && naiveCovers(h.Host, name) && len(h.Host) > len(best) {
			best = h.Host
		}
	}
	if best != "" {
		return true, best
	}
	about := false
	for _, o := range doc.Rules.Ordered {
		fits, named := applies(o.Match, r.Scheme, name)
		about = about || fits && named
	}
	if !about {
		return true, ""
	}
	for _, o := range doc.Rules.Ordered {
		fits, _ := applies(o.Match, r.Scheme, name)
		prefix, isPrefix := strings.CutSuffix(o.Match.Path, "*")
		path := o.Match.Path == "" || o.Match.Path == r.Path || isPrefix && strings.HasPrefix(r.Path, prefix)
		method := o.Match.Methods == nil || strings.Contains(strings.Join(o.Match.Methods, " "), r.Method)
		if fits && path && method {
			return o.Allow, o.Name
		}
	}
	return false, ""
}

// naiveOpens says whether some rule of Cube's shape makes a name reachable.
func naiveOpens(doc policy.Document, scheme, name string) bool {
	for _, o := range doc.Rules.Ordered {
		if fits, named := applies(o.Match, scheme, name); fits && named && o.Allow {
			return true
		}
	}
	return false
}

// checkRequests holds Request to the naive evaluator.
func checkRequests(t *testing.T, w world, doc policy.Document, p *policy.Policy) {
	t.Helper()
	for range 50 {
		r := policy.Request{Scheme: "http", Name: mustName(t, w.name()), Port: 80}
		if w.IntN(2) == 0 {
			r.Scheme, r.Port, r.SNI = "https", 443, r.Name
		}
		r.Method = []string{"GET", "POST", "PUT"}[w.IntN(3)]
		r.Path = []string{"/", "/a", "/a/b", "/ab", "/b"}[w.IntN(5)]
		allow, rule := naiveRequest(doc, r)
		got := p.Request(r)
		if (got.Verdict == policy.Allow) != allow || got.Rule != rule || got.Reason() == "" {
			t.Errorf("%+v under %+v: %v by %q (%s), want %v by %q", r, doc.Rules, got.Verdict, got.Rule, got.Reason(), allow, rule)
		}
		if wants := allow && rule != ""; wants != (len(got.Inject) > 0) {
			t.Errorf("%+v under %+v: injects %d headers", r, doc.Rules, len(got.Inject))
		}
		if r.Scheme == "https" && rule != "" && !p.Terminates(r.Name) {
			t.Errorf("%+v under %+v: nobody would see it", r, doc.Rules)
		}
	}
}

// scaled has as many rules as one may write.
func scaled(tb testing.TB) *policy.Policy {
	doc := policy.Document{}
	for i := range 512 {
		doc.Rules.Ordered = append(doc.Rules.Ordered, policy.OrderedRule{
			Name: fmt.Sprint(i), Allow: true,
			Match:  policy.Match{Host: fmt.Sprintf("host%d.example.com", i), Methods: []string{"GET"}, Path: "/v1/*"},
			Inject: []policy.Header{{Name: "Authorization", Value: secret.New("Bearer x")}},
		})
	}
	p, err := policy.Parse(doc, policy.Options{Rules: true})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

var scaledRequest = policy.Request{Scheme: "https", Method: "GET", Port: 443, Path: "/v1/chat/completions"}

func TestRequestAllocatesNothing(t *testing.T) {
	p := scaled(t)
	for _, name := range []string{"host500.example.com", "other.example.com"} {
		r := scaledRequest
		r.Name = mustName(t, name)
		r.SNI = r.Name
		if n := testing.AllocsPerRun(100, func() { p.Request(r); p.Terminates(r.Name) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	p := scaled(b)
	r := scaledRequest
	r.Name = mustName(b, "host500.example.com")
	r.SNI = r.Name
	b.ReportAllocs()
	for b.Loop() {
		if p.Request(r).Verdict != policy.Allow {
			b.Fatal("denied")
		}
	}
}

func TestNothingDeniesRequests(t *testing.T) {
	var none *policy.Policy
	if a := none.Request(scaledRequest); a.Verdict != policy.Deny || a.Reason() != "no policy is in force" {
		t.Errorf("nil policy: %v (%s)", a.Verdict, a.Reason())
	}
	to := netip.MustParseAddrPort("93.184.216.34:80")
	if a := none.RequestAt(to, nil); a.Verdict != policy.Deny || none.RequestAt(netip.AddrPort{}, &scaledRequest).Verdict != policy.Deny {
		t.Errorf("nil policy, at an address: %v (%s)", a.Verdict, a.Reason())
	}
	if (policy.Action{}).Verdict != policy.Deny || none.Terminates(mustName(t, "a.test")) || none.Rules() || none.Terminated() != nil {
		t.Error("a nil policy has rules, or the zero action allows")
	}
}

// What is no request passes only to addresses that no rule is about, also where
// one allows every request.
func TestNoRequestAtAddress(t *testing.T) {
	p, err := policy.Parse(policy.Document{Default: policy.Allow, Rules: policy.Rules{Ordered: []policy.OrderedRule{
		{Name: "all", Allow: true, Match: policy.Match{Host: "93.184.216.34", Scheme: "http"}},
	}}}, policy.Options{Rules: true})
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{
		"93.184.216.34:80": "rules decide about each request to 93.184.216.34, and this is none", "93.184.216.34:81": "", "93.184.216.35:80": "",
	} {
		a := p.RequestAt(netip.MustParseAddrPort(to), nil)
		if (a.Verdict == policy.Allow) != (want == "") || want != "" && a.Reason() != want {
			t.Errorf("%s: %v, %s", to, a.Verdict, a.Reason())
		}
	}
}

// FuzzCleanPath: what is compared with rules stays the same when it is cleaned
// again, and never climbs.
func FuzzCleanPath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/x", "//a", "*", "/a/.", "/%00", "/\\x", "/%252e"} {
		f.Add(s)
	}
	doc := policy.Document{Rules: policy.Rules{Ordered: []policy.OrderedRule{
		{Name: "public", Allow: true, Match: policy.Match{Host: "a.test", Path: "/public/*"}},
	}}}
	p, err := policy.Parse(doc, policy.Options{Rules: true})
	if err != nil {
		f.Fatal(err)
	}
	name := mustName(f, "a.test")
	f.Fuzz(func(t *testing.T, path string) {
		a := p.Request(policy.Request{Scheme: "http", Method: "GET", Name: name, Port: 80, Path: path})
		if a.Verdict != policy.Allow {
			return
		}
		depth := 0
		for _, segment := range strings.Split(strings.ReplaceAll(strings.ToLower(path), "%2f", "/"), "/") {
			switch strings.ReplaceAll(segment, "%2e", ".") {
			case "", ".":
			case "..":
				depth--
			default:
				depth++
			}
		}
		if depth < 1 {
			t.Errorf("%q passes for something below /public/", path)
		}
	})
}
