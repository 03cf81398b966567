package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/moat-sandbox/moat/api"
)

// SetSecret creates or replaces a secret of the team. The value never comes
// back: rules of sandboxes refer to it by its name.
func (c *Client) SetSecret(ctx context.Context, name, value string) (api.Secret, error) {
	var set api.Secret
	_, err := c.call(ctx, http.MethodPut, secretPath(name), nil, api.SecretValue{Value: value}, &set)
	return set, wrap("set secret", err)
}

// Secrets lists the team's secrets, without their values.
func (c *Client) Secrets(ctx context.Context) ([]api.Secret, error) {
	var secrets []api.Secret
	_, err := c.call(ctx, http.MethodGet, "/secrets", nil, nil, &secrets)
	return secrets, wrap("list secrets", err)
}

// DeleteSecret removes a secret. Requests of running sandboxes that need it fail
// from then on.
func (c *Client) DeleteSecret(ctx context.Context, name string) error {
	_, err := c.call(ctx, http.MethodDelete, secretPath(name), nil, nil, nil)
	return wrap("delete secret", err)
}

func secretPath(name string) string { return "/secrets/" + url.PathEscape(name) }
