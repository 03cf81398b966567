package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// Secrets keeps the values that teams' sandboxes may use without seeing them.
type Secrets interface {
	policy.Secrets
	// Set creates or replaces a secret: store.ErrLimit for a team that has too
	// many.
	Set(ctx context.Context, team, name string, value secret.String) (store.Secret, error)
	// Remove deletes a secret: store.ErrNotFound.
	Remove(ctx context.Context, team, name string) error
	List(ctx context.Context, team string) ([]store.Secret, error)
}

// putSecret is the only way in for a value, and there is none out.
func putSecret(c *call) error {
	name, err := c.secretName()
	if err != nil {
		return err
	}
	var body struct {
		Value *secretText `json:"value"`
	}
	if err := c.body(&body, false); err != nil {
		return err
	}
	if body.Value == nil {
		return badRequest("value is required")
	}
	value := secret.New(string(*body.Value))
	if err := policy.CheckSecret(value); err != nil {
		return badRequest("value %v", err)
	}
	ctx, cancel := c.lasting()
	defer cancel()
	record, err := c.Secrets.Set(ctx, c.team, name, value)
	if errors.Is(err, store.ErrLimit) {
		return &fault{status: http.StatusConflict, message: "The team has too many secrets: remove one first"}
	}
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, secretView(record))
}

func listSecrets(c *call) error {
	records, err := c.Secrets.List(c.r.Context(), c.team)
	if err != nil {
		return err
	}
	slices.SortFunc(records, func(a, b store.Secret) int { return cmp.Compare(a.Name, b.Name) })
	secrets := make([]api.Secret, 0, len(records))
	for _, r := range records {
		secrets = append(secrets, secretView(r))
	}
	return c.reply(http.StatusOK, secrets)
}

// deleteSecret takes the secret away from running sandboxes too: their requests
// that need it fail from then on.
func deleteSecret(c *call) error {
	name, err := c.secretName()
	if err != nil {
		return err
	}
	ctx, cancel := c.lasting()
	defer cancel()
	err = c.Secrets.Remove(ctx, c.team, name)
	if errors.Is(err, store.ErrNotFound) {
		return &fault{status: http.StatusNotFound, message: fmt.Sprintf("Secret %q does not exist", name)}
	}
	if err != nil {
		return err
	}
	return c.done()
}

func (c *call) secretName() (string, error) {
	name, err := policy.ParseSecretName(c.r.PathValue("secret"))
	if err != nil {
		return "", badRequest("%v", err)
	}
	return name, nil
}

func secretView(s store.Secret) api.Secret {
	return api.Secret{Name: s.Name, CreatedAt: shown(s.CreatedAt), UpdatedAt: shown(s.UpdatedAt)}
}
