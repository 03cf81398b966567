package kernel

import (
	"fmt"
	"strings"
)

// String shows the plan in the notation of nft.
func (p slotPlan) String() string {
	var b strings.Builder
	b.WriteString("table inet {\n")
	fmt.Fprintf(&b, "\tmap %s {\n\t\telements = { \"%s\" : goto %s }\n\t}\n", mapOut, p.slot.HostIf, p.out.name)
	fmt.Fprintf(&b, "\tmap %s {\n\t\telements = { \"%s\" : goto %s }\n\t}\n", mapIn, p.slot.HostIf, p.in.name)
	fmt.Fprintf(&b, "\tmap %s {\n\t\telements = { \"%s\" : goto %s }\n\t}\n", mapRedirect, p.slot.HostIf, p.redirect.name)
	writeTable(&b, p.sets, []chain{p.out, p.in, p.redirect})
	b.WriteString("table netdev {\n")
	writeTable(&b, nil, []chain{p.guard})
	return b.String()
}

// String shows the plan in the notation of nft.
func (p basePlan) String() string {
	var b strings.Builder
	b.WriteString("table inet {\n")
	for _, m := range p.meters {
		fmt.Fprintf(&b, "\tset %s {\n%s\t}\n", m.name, m.text())
	}
	writeTable(&b, p.sets, p.inet)
	b.WriteString("table netdev {\n")
	writeTable(&b, nil, p.netdev)
	return b.String()
}

func writeTable(b *strings.Builder, sets []set, chains []chain) {
	for _, s := range sets {
		fmt.Fprintf(b, "\tset %s {\n\t\ttype %s\n\t\tflags interval\n\t\telements = { %s }\n\t}\n", s.name, s.kind(), s.elements())
	}
	for _, c := range chains {
		fmt.Fprintf(b, "\tchain %s {\n%s\t}\n", c.name, c.text())
	}
	b.WriteString("}\n")
}

func (m meter) text() string {
	text := fmt.Sprintf("\t\tsize %d\n", meterSize)
	if m.timeout == 0 {
		return text + "\t\tflags dynamic\n"
	}
	return text + fmt.Sprintf("\t\tflags dynamic,timeout\n\t\ttimeout %s\n", strings.TrimSuffix(m.timeout.String(), "0s"))
}

func (s set) kind() string {
	if s.v6 {
		return "ipv6_addr"
	}
	return "ipv4_addr"
}

func (s set) elements() string {
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
	return strings.Join(elements, ", ")
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
	place := fmt.Sprintf("priority filter - %d", -h.priority)
	switch {
	case h.kind == "nat" && h.hook == "postrouting":
		place = "priority srcnat"
	case h.kind == "nat":
		place = "priority dstnat"
	case h.device != "":
		place = fmt.Sprintf("device \"%s\" priority %d", h.device, h.priority)
	}
	return fmt.Sprintf("type %s hook %s %s; policy accept;", h.kind, h.hook, place)
}
