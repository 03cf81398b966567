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

// index finds the most specific of the patterns that cover a name, and what was
// stored for it. Of patterns that mean the same the first is kept. A question
// costs one access for the name and one for each of its suffixes, up to the
// depth of the deepest wildcard, however many patterns there are. The maps grow
// with the patterns and not with their labels, of which a hostile document has
// a million.
type index[V any] struct {
	exact   map[string]V
	below   map[string]V
	deepest int // the most labels that a name in below has
}

func (x *index[V]) Insert(p pattern, v V) {
	values := &x.exact
	if p.wild {
		values = &x.below
		x.deepest = max(x.deepest, labels(p.name))
	}
	if *values == nil {
		*values = map[string]V{}
	}
	if _, taken := (*values)[p.name]; !taken {
		(*values)[p.name] = v
	}
}

// Get returns what is stored for this very pattern.
func (x *index[V]) Get(p pattern) (v V, ok bool) {
	if p.wild {
		v, ok = x.below[p.name]
	} else {
		v, ok = x.exact[p.name]
	}
	return v, ok
}

// Lookup returns what is stored for the most specific pattern that covers a
// name.
func (x *index[V]) Lookup(name string) (v V, ok bool) {
	if v, ok = x.exact[name]; ok {
		return v, true
	}
	for suffix := range x.suffixes(name) {
		if found, covered := x.below[suffix]; covered {
			v, ok = found, true
		}
	}
	return v, ok
}

// Broader returns what is stored for another pattern that covers everything
// this one does, the broadest there is.
func (x *index[V]) Broader(p pattern) (v V, ok bool) {
	for suffix := range x.suffixes(p.name) {
		if v, ok = x.below[suffix]; ok {
			return v, true
		}
	}
	return v, false
}

// suffixes yields what a name is below, from the empty name on: for a.b.c the
// suffixes "", "c" and "b.c", as far as there are wildcards of that depth.
func (x *index[V]) suffixes(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		dot := len(name)
		suffix := ""
		for range x.deepest + 1 {
			if dot < 0 || name == "" || !yield(suffix) {
				return
			}
			dot = strings.LastIndexByte(name[:dot], '.')
			suffix = name[dot+1:]
		}
	}
}

// names are the compiled names of a list: which entry, as written, covers a
// name.
type names struct {
	index[string]
	patterns []pattern // in the order of the document
}

func (n *names) Insert(p pattern) {
	n.patterns = append(n.patterns, p)
	n.index.Insert(p, p.entry)
}

// String returns the pattern in normal form.
func (p pattern) String() string {
	switch {
	case !p.wild:
		return p.name
	case p.name == "":
		return "*"
	}
	return "*." + p.name
}

// plain is the pattern without the way it was written, to compare it by.
func (p pattern) plain() pattern { return pattern{name: p.name, wild: p.wild} }

// covers reports whether every name that other stands for p stands for too.
func (p pattern) covers(other pattern) bool {
	if p.name == other.name {
		return p.wild == other.wild
	}
	return p.wild && (p.name == "" || strings.HasSuffix(other.name, "."+p.name))
}

// labels counts the labels of a name; the empty one has none.
func labels(name string) int {
	if name == "" {
		return 0
	}
	return strings.Count(name, ".") + 1
}
