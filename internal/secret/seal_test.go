package secret_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/moat-sandbox/moat/internal/secret"
)

func master(t *testing.T) secret.Master {
	t.Helper()
	m, err := secret.OpenMaster(filepath.Join(t.TempDir(), "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSeal(t *testing.T) {
	m, value := master(t), []byte("sk-12345")
	sealed, err := m.Seal("secret", "acme/openai", value)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, value) {
		t.Error("the sealed value can be read")
	}
	if again, err := m.Seal("secret", "acme/openai", value); err != nil || bytes.Equal(sealed, again) {
		t.Errorf("sealing twice gives the same bytes (%v)", err)
	}
	if got, err := m.Open("secret", "acme/openai", sealed); err != nil || !bytes.Equal(got, value) {
		t.Errorf("opened: %q, %v", got, err)
	}

	changed := bytes.Clone(sealed)
	changed[len(changed)-1] ^= 1
	for what, open := range map[string]func() ([]byte, error){
		"another subject": func() ([]byte, error) { return m.Open("secret", "evil/openai", sealed) },
		"another purpose": func() ([]byte, error) { return m.Open("network", "acme/openai", sealed) },
		"another key":     func() ([]byte, error) { return master(t).Open("secret", "acme/openai", sealed) },
		"no key":          func() ([]byte, error) { return secret.Master{}.Open("secret", "acme/openai", sealed) },
		"changed":         func() ([]byte, error) { return m.Open("secret", "acme/openai", changed) },
		"cut":             func() ([]byte, error) { return m.Open("secret", "acme/openai", sealed[:4]) },
		"nothing":         func() ([]byte, error) { return m.Open("secret", "acme/openai", nil) },
	} {
		if got, err := open(); err == nil || got != nil {
			t.Errorf("%s: opened %q", what, got)
		}
	}
	if sealed, err := (secret.Master{}).Seal("secret", "a", value); err == nil || sealed != nil {
		t.Error("a value was sealed without a key")
	}
}
