package policy_test

import (
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

func TestCanonical(t *testing.T) {
	for entry, want := range map[string]string{
		"1.1.1.1": "1.1.1.1", "1.1.1.1/32": "1.1.1.1", "10.1.2.3/8": "10.0.0.0/8", "2606:4700:0::1": "2606:4700::1",
		"0.0.0.0/0": "0.0.0.0/0", "::/0": "::/0",
	} {
		if got, kind := policy.Canonical(entry); got != want || kind != policy.EntryAddress {
			t.Errorf("%s: %s, %d", entry, got, kind)
		}
	}
	for entry, want := range map[string]string{
		"Example.COM.": "example.com", "*.Bücher.example": "*.xn--bcher-kva.example", "*": "*",
	} {
		if got, kind := policy.Canonical(entry); got != want || kind != policy.EntryName {
			t.Errorf("%s: %s, %d", entry, got, kind)
		}
	}
	for _, entry := range []string{"", "1.1.1.1/33", "300.1.1.1", "1.2.3/8", "a..b", "*.*.x", "fe80::1%eth0", "::ffff:1.1.1.1", "a b", "*x.com", "0.0.0.0"} {
		if got, kind := policy.Canonical(entry); got != entry || kind != policy.EntryInvalid {
			t.Errorf("%q: %q, %d", entry, got, kind)
		}
	}
}
