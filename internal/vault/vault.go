// Package vault keeps the secrets of teams: sealed in the store, and in memory
// for those who put them into requests.
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// MaxSecrets is how many secrets a team may have.
const MaxSecrets = 1000

// Config is what a Vault is made of; every field is required.
type Config struct {
	Store store.Store
	// Master seals values. Without it those in the store cannot be read again.
	Master secret.Master
	Logger *slog.Logger
}

// Vault holds the secrets of all teams. It is safe for concurrent use.
type Vault struct {
	Config
	writing sync.Mutex // held while store and memory change together

	mu     sync.RWMutex
	values map[key]secret.String
	counts map[string]int // by team
}

type key struct{ team, name string }

var _ policy.Secrets = (*Vault)(nil)

// Open reads all secrets from the store. One that cannot be opened is left out,
// so that requests which need it fail, until somebody sets it again.
func Open(ctx context.Context, c Config) (*Vault, error) {
	if c.Store == nil || c.Master.Empty() || c.Logger == nil {
		return nil, errors.New("open vault: incomplete configuration")
	}
	v := &Vault{Config: c, values: map[key]secret.String{}, counts: map[string]int{}}
	records, err := c.Store.Secrets(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("open vault: %w", err)
	}
	for _, r := range records {
		v.counts[r.Team]++
		value, err := c.Master.Open(purpose, subject(r.Team, r.Name), r.Sealed)
		if err != nil {
			c.Logger.Error("secret cannot be used, set it again", "team", r.Team, "secret", r.Name, "error", err)
			continue
		}
		v.values[key{r.Team, r.Name}] = secret.New(string(value))
	}
	return v, nil
}

// purpose separates the key of the vault from all others.
const purpose = "secret"

// subject binds a sealed value to its place. Names of teams and secrets have no
// slash.
func subject(team, name string) string { return team + "/" + name }

// Secret implements policy.Secrets.
func (v *Vault) Secret(team, name string) (secret.String, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	value, ok := v.values[key{team, name}]
	return value, ok
}

// Set creates or replaces a team's secret: store.ErrLimit for a team that has
// MaxSecrets. Once it returns, requests carry the new value.
func (v *Vault) Set(ctx context.Context, team, name string, value secret.String) (store.Secret, error) {
	sealed, err := v.Master.Seal(purpose, subject(team, name), []byte(value.Reveal()))
	if err != nil {
		return store.Secret{}, fmt.Errorf("set secret: %w", err)
	}
	v.writing.Lock()
	defer v.writing.Unlock()
	now := time.Now().UTC()
	record := store.Secret{Team: team, Name: name, Sealed: sealed, CreatedAt: now, UpdatedAt: now}
	switch old, err := v.Store.Secret(ctx, team, name); {
	case err == nil:
		record.CreatedAt = old.CreatedAt
	case !errors.Is(err, store.ErrNotFound):
		return store.Secret{}, fmt.Errorf("set secret: %w", err)
	case v.count(team) >= MaxSecrets:
		return store.Secret{}, fmt.Errorf("set secret: %w", store.ErrLimit)
	}
	if err := v.Store.PutSecret(ctx, record); err != nil {
		return store.Secret{}, fmt.Errorf("set secret: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.values[key{team, name}] = value
	if record.CreatedAt.Equal(now) {
		v.counts[team]++
	}
	return record, nil
}

// Remove deletes a team's secret: store.ErrNotFound if there is none. Requests
// that need it fail from then on.
func (v *Vault) Remove(ctx context.Context, team, name string) error {
	v.writing.Lock()
	defer v.writing.Unlock()
	if err := v.Store.DeleteSecret(ctx, team, name); err != nil {
		return fmt.Errorf("remove secret: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.values, key{team, name})
	v.counts[team]--
	return nil
}

// List returns a team's secrets, without values.
func (v *Vault) List(ctx context.Context, team string) ([]store.Secret, error) {
	records, err := v.Store.Secrets(ctx, team)
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	return records, nil
}

func (v *Vault) count(team string) int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.counts[team]
}
