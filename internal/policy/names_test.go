package policy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// isName tells names from addresses among the entries of random documents.
func isName(entry string) bool { return entry == "*" || strings.HasSuffix(entry, ".test") }

// naiveCovers compares strings that are in normal form.
func naiveCovers(entry, name string) bool {
	suffix, wild := strings.CutPrefix(entry, "*")
	return entry == name || wild && (suffix == "" || strings.HasSuffix(name, suffix))
}

func naiveNames(doc policy.Document, name string) bool {
	for _, entry := range doc.AllowOut {
		if isName(entry) && naiveCovers(entry, name) {
			return true
		}
	}
	return false
}

func naiveNeedsDenyAll(doc policy.Document) bool {
	if doc.Default == policy.Deny {
		return false
	}
	for _, entry := range doc.DenyOut {
		if entry == policy.AllTraffic {
			return false
		}
	}
	ruled := ""
	for _, r := range doc.Rules.Hosts {
		ruled += r.Host + " "
	}
	for _, entry := range doc.AllowOut {
		if isName(entry) && !strings.Contains(" "+ruled, " "+entry+" ") {
			return true
		}
	}
	return false
}

// naiveOpen is whether addresses at large are open, in some family.
func naiveOpen(doc policy.Document) bool {
	for _, entry := range doc.AllowOut {
		if strings.HasSuffix(entry, "/0") {
			return true
		}
	}
	for _, entry := range doc.DenyOut {
		if entry == policy.AllTraffic {
			return false
		}
	}
	return doc.Default == policy.Allow
}

// name makes names of few labels, so that they are often equal or below one
// another.
func (w world) name() string {
	labels := []string{"test"}
	for range 1 + w.IntN(4) {
		labels = append([]string{[]string{"a", "b", "ab"}[w.IntN(3)]}, labels...)
	}
	return strings.Join(labels, ".")
}

func (w world) addNames(doc *policy.Document) {
	if w.IntN(2) == 0 {
		return
	}
	for range w.IntN(5) {
		entry := w.name()
		switch w.IntN(12) {
		case 0:
			entry = "*"
		case 1, 2, 3, 4:
			entry = "*." + entry
		case 5, 6:
			if !slices.ContainsFunc(doc.Rules.Hosts, func(r policy.HostRule) bool { return r.Host == entry }) {
				doc.Rules.Hosts = append(doc.Rules.Hosts, policy.HostRule{Host: entry, Headers: []policy.Header{{Name: "X-Named", Value: secret.New("x")}}})
			}
		}
		doc.AllowOut = append(doc.AllowOut, entry)
	}
	if w.IntN(2) == 0 {
		doc.DenyOut = append(doc.DenyOut, policy.AllTraffic)
	}
}

// checkNames holds DecideName and DecideQuery to the naive evaluator.
func checkNames(t *testing.T, w world, doc policy.Document, p *policy.Policy) {
	t.Helper()
	for range 50 {
		text := w.name()
		name := mustName(t, text)
		named := naiveNames(doc, text)
		for _, port := range []uint16{80, 443, 22, 0} {
			for _, proto := range []policy.Proto{policy.TCP, policy.UDP, policy.ICMP, 0} {
				web := proto == policy.TCP && (port == 80 || port == 443)
				want := web && (named || naiveOpens(doc, map[uint16]string{80: "http", 443: "https"}[port], text))
				if d := p.DecideName(name, proto, port); (d.Verdict == policy.Allow) != want || d.Reason() == "" {
					t.Errorf("%v %s:%d under %+v: %v (%s)", proto, text, port, doc, d.Verdict, d.Reason())
				}
			}
		}
		if d := p.DecideQuery(name); (d.Verdict == policy.Allow) != (named || naiveOpen(doc) || naiveOpens(doc, "http", text) || naiveOpens(doc, "https", text)) || d.Reason() == "" {
			t.Errorf("query %s under %+v: %v (%s)", text, doc, d.Verdict, d.Reason())
		}
	}
}

func mustName(t testing.TB, text string) policy.Name {
	t.Helper()
	name, err := policy.ParseName(text)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestNothingDeniesNames(t *testing.T) {
	var none *policy.Policy
	every, err := policy.Parse(policy.Document{AllowOut: []string{"*"}}, policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for what, d := range map[string]policy.Decision{
		"nil policy, name":  none.DecideName(mustName(t, "a.test"), policy.TCP, 443),
		"nil policy, query": none.DecideQuery(mustName(t, "a.test")),
		"no name":           every.DecideName(policy.Name{}, policy.TCP, 443),
		"no question":       every.DecideQuery(policy.Name{}),
	} {
		if d.Verdict != policy.Deny || d.Reason() == "" {
			t.Errorf("%s: %v (%s)", what, d.Verdict, d.Reason())
		}
	}
	if none.Names() || !every.Names() || none.Warnings() != nil {
		t.Error("a nil policy has names, or * is none")
	}
}

func TestEntriesWithSpacesAreNoNames(t *testing.T) {
	for entry, want := range map[string]string{
		"a b":               `invalid allowed address "a b": not an IP address, CIDR or domain name: ' ' is not valid in a name`,
		" example.com":      `invalid allowed address " example.com": not an IP address, CIDR or domain name: ' ' is not valid in a name`,
		"example.com\r\n":   `invalid allowed address "example.com\r\n": not an IP address, CIDR or domain name: '\r' is not valid in a name`,
		"example.com\x00.x": `invalid allowed address "example.com\x00.x": not an IP address, CIDR or domain name: '\x00' is not valid in a name`,
	} {
		p, err := policy.Parse(policy.Document{AllowOut: []string{entry}}, policy.Options{})
		if p != nil || err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", entry, err, want)
		}
	}
}
