package policy

import (
	"iter"
	"strings"
)

// pattern is an entry that allows names: one name, or with wild set all names
// below it, at any depth, but not itself. Below the empty name is every name.
type pattern struct {
	name  string // normalised
	wild  bool
	entry string // as it was written
}

// parsePattern reads a name, *.name or *.
func parsePattern(entry string) (p pattern, reason string) {
	if entry == "*" {
		return pattern{wild: true, entry: entry}, ""
	}
	name, wild := strings.CutPrefix(entry, "*.")
	if name, reason = normalise(name); reason != "" {
		return pattern{}, reason
	}
	return pattern{name: strings.Clone(name), wild: wild, entry: strings.Clone(entry)}, ""
}

// names are compiled patterns: which entry, as written, stands for a name, and
// which for all names below one. Of entries that mean the same the first is
// kept. A question costs one access for the name and one for each of its
// suffixes, up to the depth of the deepest wildcard, however many patterns
// there are. The maps grow with the entries and not with their labels, of
// which a hostile document has a million.
type names struct {
	patterns []pattern // in the order of the document
	exact    map[string]string
	below    map[string]string
	deepest  int // the most labels that a name in below has
}

func (n *names) Insert(p pattern) {
	n.patterns = append(n.patterns, p)
	entries := &n.exact
	if p.wild {
		entries = &n.below
		n.deepest = max(n.deepest, labels(p.name))
	}
	if *entries == nil {
		*entries = map[string]string{}
	}
	if _, taken := (*entries)[p.name]; !taken {
		(*entries)[p.name] = p.entry
	}
}

// Lookup returns the most specific entry that covers a name.
func (n *names) Lookup(name string) (entry string, ok bool) {
	if entry, ok = n.exact[name]; ok {
		return entry, true
	}
	for suffix := range n.suffixes(name) {
		if found, covered := n.below[suffix]; covered {
			entry, ok = found, true
		}
	}
	return entry, ok
}

// Broader returns another entry that covers everything a pattern does, the
// broadest there is.
func (n *names) Broader(p pattern) (entry string, ok bool) {
	for suffix := range n.suffixes(p.name) {
		if entry, ok = n.below[suffix]; ok {
			return entry, true
		}
	}
	return "", false
}

// suffixes yields what a name is below, from the empty name on: for a.b.c the
// suffixes "", "c" and "b.c", as far as there are wildcards of that depth.
func (n *names) suffixes(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		dot := len(name)
		suffix := ""
		for range n.deepest + 1 {
			if dot < 0 || name == "" || !yield(suffix) {
				return
			}
			dot = strings.LastIndexByte(name[:dot], '.')
			suffix = name[dot+1:]
		}
	}
}

// labels counts the labels of a name; the empty one has none.
func labels(name string) int {
	if name == "" {
		return 0
	}
	return strings.Count(name, ".") + 1
}
