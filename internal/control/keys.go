package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// presetID is the record of the key that the configuration presets: always one,
// so that changing the setting revokes the old key.
const presetID = "preset"

// Bootstrap sees to it that the default team has a key. A preset key is made
// the only preset one; without it, a store that has no key at all gets a
// generated one, which is returned: it cannot be shown again.
func Bootstrap(ctx context.Context, s store.Store, preset secret.String) (generated secret.String, err error) {
	if err := dropPreset(ctx, s, preset); err != nil {
		return secret.String{}, fmt.Errorf("bootstrap API key: %w", err)
	}
	if !preset.Empty() {
		return secret.String{}, addPreset(ctx, s, preset)
	}
	keys, err := s.Keys(ctx)
	if err != nil {
		return secret.String{}, fmt.Errorf("bootstrap API key: %w", err)
	}
	if len(keys) > 0 {
		return secret.String{}, nil
	}
	value := newAPIKey()
	record := keyRecord(newKeyID(), "first key", api.DefaultTeam, value)
	if err := s.CreateKey(ctx, record); err != nil {
		return secret.String{}, fmt.Errorf("bootstrap API key: %w", err)
	}
	return value, nil
}

// dropPreset revokes the preset key of an earlier start unless it is this one.
func dropPreset(ctx context.Context, s store.Store, preset secret.String) error {
	keys, err := s.Keys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.ID == presetID && (preset.Empty() || k.Hash != secret.Hash(preset.Reveal())) {
			return s.DeleteKey(ctx, presetID)
		}
	}
	return nil
}

func addPreset(ctx context.Context, s store.Store, preset secret.String) error {
	if value := preset.Reveal(); len(value) > maxKey || !keyForm.MatchString(value) {
		return errors.New("preset API key: it must be e2b_ and hexadecimal digits in lower case, or E2B's SDKs refuse it")
	}
	err := s.CreateKey(ctx, keyRecord(presetID, "preset", api.DefaultTeam, preset))
	if err != nil && !errors.Is(err, store.ErrExists) { // known from an earlier start
		return fmt.Errorf("preset API key: %w", err)
	}
	return nil
}

// newAPIKey makes a key of 160 random bits.
func newAPIKey() secret.String {
	raw := make([]byte, 20)
	_, _ = rand.Read(raw) // documented never to fail
	return secret.New("e2b_" + hex.EncodeToString(raw))
}

func newKeyID() string { return "k" + strings.ToLower(rand.Text()[:12]) }

func keyRecord(id, name, team string, value secret.String) store.Key {
	return store.Key{
		ID: id, Name: name, Team: team,
		Hash:      secret.Hash(value.Reveal()),
		Prefix:    keyPrefix(value.Reveal()),
		CreatedAt: time.Now().UTC(),
	}
}

// keyPrefix is enough of a key to recognise it by, and of a short one nothing
// that would help to guess the rest.
func keyPrefix(value string) string {
	const shown, least = len("e2b_") + 4, len("e2b_") + 32
	if len(value) < least {
		return "e2b_"
	}
	return value[:shown]
}

// maxKeyName bounds a key's name, in bytes.
const maxKeyName = 100

func createKey(c *call) error {
	var body api.NewKey
	if err := c.body(&body, true); err != nil {
		return err
	}
	if len(body.Name) > maxKeyName || strings.ContainsFunc(body.Name, unicode.IsControl) || !utf8.ValidString(body.Name) {
		return badRequest("name must be at most %d bytes of printable text, got %q", maxKeyName, clip(body.Name))
	}
	if body.Team != "" && !api.ValidTeam(body.Team) {
		return badRequest("team must be at most 63 letters, digits, dots, dashes and underscores, got %q", clip(body.Team))
	}
	value, id := newAPIKey(), newKeyID()
	record := keyRecord(id, body.Name, cmp.Or(body.Team, id), value)
	if err := c.Store.CreateKey(c.r.Context(), record); err != nil {
		return err
	}
	return c.reply(http.StatusCreated, api.CreatedKey{Key: keyView(record), Secret: value.Reveal()})
}

func listKeys(c *call) error {
	records, err := c.Store.Keys(c.r.Context())
	if err != nil {
		return err
	}
	slices.SortFunc(records, func(a, b store.Key) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	keys := make([]api.Key, 0, len(records))
	for _, k := range records {
		keys = append(keys, keyView(k))
	}
	return c.reply(http.StatusOK, keys)
}

// deleteKey revokes a key. The sandboxes of its team stay until their end.
func deleteKey(c *call) error {
	id := c.r.PathValue("keyID")
	err := c.Store.DeleteKey(c.r.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return &fault{status: http.StatusNotFound, message: fmt.Sprintf("API key %q not found", clip(id))}
	}
	if err != nil {
		return err
	}
	return c.done()
}

func keyView(k store.Key) api.Key {
	return api.Key{ID: k.ID, Name: k.Name, Team: k.Team, Prefix: k.Prefix, CreatedAt: shown(k.CreatedAt)}
}
