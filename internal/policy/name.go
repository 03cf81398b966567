package policy

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Name is a domain name in the one form in which names are compared, asked
// for and dialled. Only ParseName makes one; the zero Name is no name, and no
// policy allows it.
type Name struct{ text string }

// String returns the name in lower case, in ASCII and without a final dot.
func (n Name) String() string { return n.text }

// Limits of DNS, in bytes of the ASCII form (RFC 1035, 2.3.4).
const (
	maxName  = 253
	maxLabel = 63
)

// ParseName reads a domain name as it stands in a document, an SNI, a Host
// header (without port) or a DNS question. There is no other way to make a
// Name, so those who write rules and those who enforce them cannot disagree
// about one.
//
// Upper case and one trailing dot do not matter; labels that are not ASCII
// are converted as IDNA's lookup profile says, and labels that claim to be so
// converted must really be. Besides letters, digits and hyphens in any place,
// labels may have underscores: names of services (_dmarc.example.com) and of
// some hosts do. Refused is whatever is empty or too long, as a whole or in a
// label, has any other character, is an address, or ends in a number as only
// addresses do in some notation: what other programs take for an address
// (0x7f.1, 2130706433) must not pass as a name.
func ParseName(s string) (Name, error) {
	text, reason := normalise(s)
	if reason != "" {
		return Name{}, fmt.Errorf("invalid name %s: %s", printable(s), reason)
	}
	return Name{text}, nil
}

// normalise does the work of ParseName; the reason is empty when the name is
// valid. It allocates nothing for what is already in normal form, unless that
// has international labels.
func normalise(s string) (name, reason string) {
	if len(s) > utf8.UTFMax*maxName {
		return "", reasonNameLength
	}
	if ascii(s) {
		s = strings.ToLower(s)
	} else {
		s = strings.Map(asciiDot, s)
	}
	s = strings.TrimSuffix(s, ".")
	if !ascii(s) || strings.Contains(s, acePrefix) {
		if s, reason = international(s); reason != "" {
			return "", reason
		}
	}
	if reason = checkName(s); reason != "" {
		return "", reason
	}
	return s, ""
}

const (
	reasonNameLength = "longer than 253 characters"
	reasonIDNA       = "not a valid internationalised name"
	reasonNumber     = "the last label is a number"
)

// acePrefix begins the labels that stand for others outside of ASCII.
const acePrefix = "xn--"

// asciiDot maps the other full stops that IDNA knows to a dot.
func asciiDot(r rune) rune {
	switch r {
	case '\u3002', '\uff0e', '\uff61':
		return '.'
	}
	return r
}

// international converts each label to ASCII.
func international(s string) (name, reason string) {
	if !utf8.ValidString(s) { // idna would take it for a replacement character
		return "", reasonIDNA
	}
	labels := strings.Split(s, ".")
	for i, label := range labels {
		switch {
		case !ascii(label):
			converted, err := idna.Lookup.ToASCII(label)
			if err != nil {
				return "", reasonIDNA
			}
			label = converted
		default:
			label = strings.ToLower(label)
		}
		if strings.HasPrefix(label, acePrefix) && !canonicalACE(label) {
			return "", reasonIDNA
		}
		labels[i] = label
	}
	return strings.Join(labels, "."), ""
}

// canonicalACE reports whether a label stands for exactly one that is not
// ASCII: decoding and encoding it again gives the same.
func canonicalACE(label string) bool {
	decoded, err := idna.Lookup.ToUnicode(label)
	if err != nil || ascii(decoded) {
		return false
	}
	encoded, err := idna.Lookup.ToASCII(decoded)
	return err == nil && encoded == label
}

// checkName checks a name that is in lower-case ASCII.
func checkName(s string) (reason string) {
	if s == "" {
		return "the name is empty"
	}
	if len(s) > maxName {
		return reasonNameLength
	}
	start := 0
	for i := range len(s) + 1 {
		switch {
		case i < len(s) && s[i] != '.':
			if !nameByte(s[i]) {
				return unexpectedByte(s[i])
			}
		case i == start:
			return "a label is empty"
		case i-start > maxLabel:
			return "a label is longer than 63 characters"
		default:
			start = i + 1
		}
	}
	if endsInNumber(s) {
		return reasonNumber
	}
	return ""
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

func unexpectedByte(c byte) string {
	switch c {
	case ':', '/', '@':
		return fmt.Sprintf("%q in a name; write it without scheme, user, port and path", c)
	case '*':
		return "'*' stands for a whole name or for the labels before it: * or *.example.com"
	}
	return fmt.Sprintf("%q is not valid in a name", c)
}

// endsInNumber reports whether the last label is a number, decimal, octal or
// hexadecimal: whoever wrote that meant an address. No such name exists.
func endsInNumber(s string) bool {
	last := s[strings.LastIndexByte(s, '.')+1:]
	if hex, ok := strings.CutPrefix(strings.ToLower(last), "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
