package vault_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/store/bolt"
	"github.com/moat-sandbox/moat/internal/vault"
)

// rig is a vault, what it is made of and what it logs.
type rig struct {
	*vault.Vault
	path    string
	records *bolt.Store
	log     bytes.Buffer
}

func newRig(t *testing.T) *rig {
	r := &rig{path: filepath.Join(t.TempDir(), "moat.db")}
	r.open(t)
	t.Cleanup(func() { r.records.Close() })
	return r
}

// open opens the vault, as a server that starts.
func (r *rig) open(t *testing.T) {
	t.Helper()
	if r.records != nil {
		r.records.Close()
	}
	var err error
	if r.records, err = bolt.Open(r.path); err != nil {
		t.Fatal(err)
	}
	master, err := secret.OpenMaster(filepath.Join(filepath.Dir(r.path), "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	r.Vault, err = vault.Open(t.Context(), vault.Config{
		Store: r.records, Master: master, Logger: slog.New(slog.NewTextHandler(&r.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) want(t *testing.T, team, name, value string) {
	t.Helper()
	got, ok := r.Secret(team, name)
	if got.Reveal() != value || ok != (value != "") {
		t.Errorf("%s of %s: %q, %v, want %q", name, team, got.Reveal(), ok, value)
	}
}

func (r *rig) set(t *testing.T, team, name, value string) store.Secret {
	t.Helper()
	record, err := r.Set(t.Context(), team, name, secret.New(value))
	if err != nil {
		t.Fatal(err)
	}
	return record
}

func TestSecretsOfTeams(t *testing.T) {
	r := newRig(t)
	first := r.set(t, "acme", "openai", "sk-first")
	r.set(t, "other", "openai", "sk-other")
	second := r.set(t, "acme", "openai", "sk-second")
	if !second.CreatedAt.Equal(first.CreatedAt) || !second.UpdatedAt.After(first.UpdatedAt) {
		t.Errorf("replaced: %+v after %+v", second, first)
	}
	for range 2 {
		r.want(t, "acme", "openai", "sk-second")
		r.want(t, "other", "openai", "sk-other")
		r.want(t, "acme", "gone", "")
		r.want(t, "", "openai", "")
		r.open(t)
	}
	listed, err := r.List(t.Context(), "acme")
	if err != nil || len(listed) != 1 || listed[0].Name != "openai" {
		t.Errorf("list: %+v, %v", listed, err)
	}
	if err := r.Remove(t.Context(), "acme", "openai"); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(t.Context(), "acme", "openai"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
	r.want(t, "acme", "openai", "")
	r.open(t)
	r.want(t, "acme", "openai", "")
	r.want(t, "other", "openai", "sk-other")

	raw, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"sk-first", "sk-second", "sk-other"} {
		if bytes.Contains(raw, []byte(value)) || strings.Contains(r.log.String(), value) {
			t.Errorf("%s can be read", value)
		}
	}
}

// A value that was put in another one's place is not used.
func TestMovedSecretIsNotUsed(t *testing.T) {
	r := newRig(t)
	r.set(t, "acme", "openai", "sk-acme")
	record, err := r.records.Secret(t.Context(), "acme", "openai")
	if err != nil {
		t.Fatal(err)
	}
	record.Team = "evil"
	if err := r.records.PutSecret(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	r.open(t)
	r.want(t, "evil", "openai", "")
	r.want(t, "acme", "openai", "sk-acme")
	if !strings.Contains(r.log.String(), "team=evil") {
		t.Errorf("nobody is told: %s", r.log.String())
	}
	r.set(t, "evil", "openai", "own") // can be set again
	r.want(t, "evil", "openai", "own")
}

func TestNewChecks(t *testing.T) {
	if v, err := vault.Open(t.Context(), vault.Config{Store: newRig(t).records, Logger: slog.Default()}); err == nil || v != nil {
		t.Error("a vault without a master key was opened")
	}
}
