package ingress

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// address is a port of a sandbox.
type address struct {
	id   string
	port uint16
}

// hostKind says whom a Host header addresses.
type hostKind uint8

const (
	// foreignHost is nobody's in particular: the API answers.
	foreignHost hostKind = iota
	// sharedHost is a name or address under which every sandbox is reached,
	// chosen by headers.
	sharedHost
	// sandboxHost names a port of one sandbox.
	sandboxHost
)

const maxLabel = 63 // octets of a DNS label

// checkDomain validates the configured domain and returns it in lower case.
func checkDomain(domain string) (string, error) {
	name := lower(domain)
	bad := fmt.Errorf("ingress: domain %q is not a DNS name", domain)
	// Port, dash and id need a label in front of it, within DNS's 253 octets.
	if name == "" || len(name) > 253-maxLabel-1 {
		return "", bad
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return "", bad
		}
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", fmt.Errorf("ingress: domain %q is an IP address, want a DNS name", domain)
	}
	return name, nil
}

func isLabel(s string) bool {
	if s == "" || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return isAlnum(strings.ReplaceAll(s, "-", ""))
}

// parseHost tells whom a Host header addresses. domain is in lower case. What
// is meant as a sandbox's host and is not exactly one is an error: it must not
// be taken for anything else.
func parseHost(host, domain string) (hostKind, address, error) {
	name := strings.TrimSuffix(stripPort(host), ".")
	folded := lower(name)
	if isShared(folded, domain) {
		return sharedHost, address{}, nil
	}
	label, below := strings.CutSuffix(folded, "."+domain)
	if !below {
		label, below = strings.CutSuffix(folded, ".localhost") // leads every browser and curl here
	}
	if !below {
		if resembles(folded, isOurLabel) {
			return foreignHost, address{}, fmt.Errorf("host %q is not below this server's domain %q", host, domain)
		}
		return foreignHost, address{}, nil
	}
	if !resembles(label, func(l string) bool { return startsLikePort(l) || isOurLabel(l) }) {
		return foreignHost, address{}, nil
	}
	// The label as it was sent: an id in upper case is not an id.
	addr, err := parseLabel(name[:len(label)])
	if err != nil {
		return foreignHost, address{}, fmt.Errorf("host %q: %w", host, err)
	}
	return sandboxHost, addr, nil
}

// IsPublic reports whether a host is that of a public URL below a domain, both in
// lower case. Below localhost, which to everybody is another machine, it is only
// if that is the domain.
func IsPublic(host, domain string) bool {
	if !strings.HasSuffix(host, "."+domain) {
		return false
	}
	kind, _, err := parseHost(host, domain)
	return err == nil && kind == sandboxHost
}

// The label of a public URL has a port, a dash and an id: this many bytes.
const (
	ShortestLabel = 1 + 1 + givenIDLength
	LongestLabel  = 5 + 1 + givenIDLength
)

// stripPort removes a port and the brackets of an IPv6 literal. What is no
// port stays, so that the name matches nothing.
func stripPort(host string) string {
	name, port, found := strings.Cut(host, ":")
	if literal, after, ok := strings.Cut(host, "]"); ok {
		addr, err := netip.ParseAddr(strings.TrimPrefix(literal, "["))
		if err != nil || !addr.Is6() {
			return host
		}
		name = addr.String()
		_, port, found = strings.Cut(after, ":")
		found = found || after == ""
	}
	if found && len(port) <= 5 && (port == "" || isDigits(port)) {
		return name
	}
	return host
}

// isShared reports whether sandboxes are chosen by header under this name.
func isShared(name, domain string) bool {
	if name == "localhost" || name == "sandbox."+domain {
		return true
	}
	_, err := netip.ParseAddr(name)
	return err == nil
}

// resembles reports whether any label of name is like a sandbox's.
func resembles(name string, like func(label string) bool) bool {
	for label := range strings.SplitSeq(name, ".") {
		if like(label) {
			return true
		}
	}
	return false
}

// startsLikePort matches "8080-…" and "-1-…": below our own domain that can
// only be meant as a sandbox.
func startsLikePort(label string) bool {
	first, _, dashed := strings.Cut(label, "-")
	return dashed && (first == "" || isDigits(first[:1]))
}

// isOurLabel matches labels that hold an id of the length we give out, such as
// "8080-i…" and "undefined-i…", whatever domain follows.
func isOurLabel(label string) bool {
	_, rest, dashed := strings.Cut(label, "-")
	if !dashed {
		return false
	}
	for part := range strings.SplitSeq(rest, "-") {
		if len(part) == givenIDLength && sandbox.ValidID(part) {
			return true
		}
	}
	return false
}

// givenIDLength is the length of the ids that sandbox.NewID returns.
const givenIDLength = 21

// parseLabel takes "<port>-<id>" apart, or "<port>-<id>-<client>" as old
// clients write it; the last part has no meaning any more.
func parseLabel(label string) (address, error) {
	switch {
	case strings.Contains(label, "."):
		return address{}, fmt.Errorf("%q has more labels than <port>-<id>", label)
	case len(label) > maxLabel:
		return address{}, fmt.Errorf("the name is longer than %d characters", maxLabel)
	}
	digits, id, _ := strings.Cut(label, "-")
	port, err := parsePort(digits)
	if err != nil {
		return address{}, err
	}
	id, err = parseID(id)
	return address{id: id, port: port}, err
}

// parsePort accepts 1 to 65535 in decimal without leading zeros.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || !isDigits(s) || s[0] == '0' {
		return 0, fmt.Errorf("invalid sandbox port %q: want a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// parseID accepts "<id>" and "<id>-<client>" and returns the id.
func parseID(s string) (string, error) {
	id, client, legacy := strings.Cut(s, "-")
	if !isAlnum(id) || legacy && !isAlnum(client) || len(s) > maxLabel {
		return "", fmt.Errorf("invalid sandbox ID %q: want lower-case letters and digits", s)
	}
	return id, nil
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func isAlnum(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// lower folds ASCII letters only: strings.ToLower also turns the Kelvin sign
// into a k, which would make two names equal that DNS tells apart.
func lower(s string) string {
	if strings.IndexFunc(s, func(c rune) bool { return 'A' <= c && c <= 'Z' }) < 0 {
		return s
	}
	folded := []byte(s)
	for i, c := range folded {
		if 'A' <= c && c <= 'Z' {
			folded[i] = c + 'a' - 'A'
		}
	}
	return string(folded)
}
