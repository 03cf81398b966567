package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

// FuzzParse: whatever a caller writes is refused with an error about it, or
// compiles to something that can be asked.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"1.1.1.1", "::/0", "0.0.0.0/0", "*.example.com", "fe80::1%1", "::ffff:1.2.3.4/120", "1.1.1.1/-0", " 1.1.1.1", "\x00", "١.١.١.١", "*", "bücher.example", "0x7f.1"} {
		f.Add(s, s, uint8(1))
	}
	f.Fuzz(func(t *testing.T, allow, deny string, verdict uint8) {
		doc := policy.Document{AllowOut: []string{allow}, DenyOut: []string{deny}, Default: policy.Verdict(verdict)}
		p, err := policy.Parse(doc, policy.Options{})
		if err != nil {
			if p != nil || len(err.Error()) > 1000 {
				t.Errorf("policy %v with error of %d bytes", p, len(err.Error()))
			}
			return
		}
		if !isAddress(deny) || !isAddress(allow) && !p.Names() {
			t.Errorf("accepted %q and %q, which netip does not read", allow, deny)
		}
		if p.Names() && isAddress(allow) {
			t.Errorf("%q is taken for a name", allow)
		}
		p.Warnings()
		for _, a := range []string{"127.0.0.1", "169.254.169.254", "::1", "fe80::1"} {
			if p.Decide(policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(netip.MustParseAddr(a), 80)}).Verdict != policy.Deny {
				t.Errorf("%+v opens %s", doc, a)
			}
		}
	})
}

func isAddress(entry string) bool {
	_, noAddr := netip.ParseAddr(entry)
	_, noPrefix := netip.ParsePrefix(entry)
	return noAddr == nil || noPrefix == nil
}

// FuzzParseName: what is accepted is a name by the rules of the DNS, in a form
// that does not change any more, and nothing that could be an address.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"GitHub.com.", "bücher.example", "xn--bcher-kva.example", "127.1", "0x7f", "a..b", "例え。jp", "ｘｎ--a", "_dmarc.x", "a\x00b", "[::1]", "xn--xn---epa", "İ.example"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := policy.ParseName(s)
		if err != nil {
			if (name != policy.Name{}) || len(err.Error()) > 1000 {
				t.Errorf("%q: name %v with error of %d bytes", s, name, len(err.Error()))
			}
			return
		}
		text := name.String()
		if again, err := policy.ParseName(text); err != nil || again != name {
			t.Errorf("%q gives %q, and that %q, %v", s, text, again, err)
		}
		if dotted, err := policy.ParseName(strings.ToUpper(text) + "."); err != nil || dotted != name {
			t.Errorf("%q in capitals with a dot gives %q, %v", text, dotted, err)
		}
		if _, err := netip.ParseAddr(text); err == nil {
			t.Errorf("%q gives the address %q", s, text)
		}
		if len(text) == 0 || len(text) > 253 {
			t.Errorf("%q gives a name of %d bytes", s, len(text))
		}
		labels := strings.Split(text, ".")
		for _, label := range labels {
			if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
				t.Errorf("%q gives %q with the label %q", s, text, label)
			}
		}
		if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
			t.Errorf("%q gives %q, which ends in a number", s, text)
		}
	})
}
