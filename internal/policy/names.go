package policy

import "strings"

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

// nameTree holds patterns as a tree of labels, the last label at the root. A
// question costs one map access per label, however many patterns there are,
// and ends at the first label that no pattern has.
type nameTree struct {
	patterns []pattern // in the order of the document
	nodes    []nameNode
	edges    map[nameEdge]int // to the index of a node
}

type nameEdge struct {
	parent int
	label  string
}

// nameNode holds the first entries, as written, that end here; empty is none.
type nameNode struct {
	exact string
	below string
}

func newNameTree() *nameTree {
	return &nameTree{nodes: make([]nameNode, 1), edges: map[nameEdge]int{}}
}

func (t *nameTree) Insert(p pattern) {
	t.patterns = append(t.patterns, p)
	at := 0
	for rest, label := p.name, ""; rest != ""; {
		rest, label = cutLast(rest)
		next, ok := t.edges[nameEdge{at, label}]
		if !ok {
			next = len(t.nodes)
			t.nodes = append(t.nodes, nameNode{})
			t.edges[nameEdge{at, label}] = next
		}
		at = next
	}
	slot := &t.nodes[at].exact
	if p.wild {
		slot = &t.nodes[at].below
	}
	if *slot == "" {
		*slot = p.entry
	}
}

// Lookup returns the most specific entry that covers a name.
func (t *nameTree) Lookup(name string) (entry string, ok bool) {
	at, best := 0, ""
	for rest, label := name, ""; rest != ""; {
		if below := t.nodes[at].below; below != "" {
			best = below
		}
		rest, label = cutLast(rest)
		next, ok := t.edges[nameEdge{at, label}]
		if !ok {
			return best, best != ""
		}
		at = next
	}
	if exact := t.nodes[at].exact; name != "" && exact != "" {
		return exact, true
	}
	return best, best != ""
}

// Broader returns another entry that covers everything a pattern does.
func (t *nameTree) Broader(p pattern) (entry string, ok bool) {
	at := 0
	for rest, label := p.name, ""; rest != ""; {
		if below := t.nodes[at].below; below != "" {
			return below, true
		}
		rest, label = cutLast(rest)
		at = t.edges[nameEdge{at, label}]
	}
	return "", false
}

// cutLast takes the last label off a name.
func cutLast(name string) (rest, label string) {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return "", name
	}
	return name[:dot], name[dot+1:]
}
