package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// String shows the plan in the notation of nft.
func (p slotPlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", p.layout.table())
	for _, m := range []struct{ name, chain string }{{mapOut, p.out.name}, {mapIn, p.in.name}} {
		fmt.Fprintf(&b, "\tmap %s {\n\t\telements = { \"%s\" : goto %s }\n\t}\n", m.name, p.slot.HostIf, m.chain)
	}
	writeTable(&b, p.sets, []chain{p.out, p.in})
	fmt.Fprintf(&b, "table netdev %s {\n", p.layout.table())
	writeTable(&b, nil, []chain{p.guard})
	return b.String()
}

func (p basePlan) text(table string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", table)
	writeTable(&b, p.sets, p.inet)
	fmt.Fprintf(&b, "table netdev %s {\n", table)
	writeTable(&b, nil, p.netdev)
	return b.String()
}

func writeTable(b *strings.Builder, sets []set, chains []chain) {
	for _, s := range sets {
		fmt.Fprintf(b, "\tset %s {\n%s\t}\n", s.name, s.text())
	}
	for _, c := range chains {
		fmt.Fprintf(b, "\tchain %s {\n%s\t}\n", c.name, c.text())
	}
	b.WriteString("}\n")
}

func (s set) text() string {
	kind := "ipv4_addr"
	if s.v6 {
		kind = "ipv6_addr"
	}
	text := fmt.Sprintf("\t\ttype %s\n\t\tflags interval\n", kind)
	if len(s.ranges) == 0 {
		return text
	}
	elements := make([]string, len(s.ranges))
	for i, r := range s.ranges {
		prefix, ok := r.Prefix()
		switch {
		case ok && prefix.IsSingleIP():
			elements[i] = r.From().String()
		case ok:
			elements[i] = prefix.String()
		default:
			elements[i] = r.String()
		}
	}
	return text + "\t\telements = { " + strings.Join(elements, ", ") + " }\n"
}

func (c chain) text() string {
	var b strings.Builder
	if c.base != nil {
		fmt.Fprintf(&b, "\t\t%s\n", c.base)
	}
	for _, r := range c.rules {
		fmt.Fprintf(&b, "\t\t%s\n", r)
	}
	return b.String()
}

// String shows where the chain is run, as nft prints it.
func (h *base) String() string {
	priority, after := "", "accept"
	switch {
	case h.hook == "postrouting" && h.priority == 100:
		priority = "srcnat"
	case h.hook == "ingress":
		priority = fmt.Sprintf("device \"%s\" priority %d", h.device, h.priority)
	default:
		priority = fmt.Sprintf("filter - %d", -h.priority)
	}
	if h.drop {
		after = "drop"
	}
	if h.hook != "ingress" {
		priority = "priority " + priority
	}
	return fmt.Sprintf("type %s hook %s %s; policy %s;", h.kind, h.hook, priority, after)
}

// digest identifies a plan by its text. The kernel carries it with the rules,
// so that they can be told from those of another plan.
func (p slotPlan) digest() string {
	sum := sha256.Sum256([]byte(p.String()))
	return "plan " + hex.EncodeToString(sum[:8])
}
