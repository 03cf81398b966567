package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/moat-sandbox/moat/api"
)

// The methods in this file work on the operator's socket only.

// CreateKey makes an API key. The answer is the only place that ever shows it.
func (c *Client) CreateKey(ctx context.Context, spec api.NewKey) (api.CreatedKey, error) {
	var made api.CreatedKey
	_, err := c.call(ctx, http.MethodPost, "/operator/keys", nil, spec, &made)
	return made, wrap("create key", err)
}

// Keys lists the API keys of all teams.
func (c *Client) Keys(ctx context.Context) ([]api.Key, error) {
	var keys []api.Key
	_, err := c.call(ctx, http.MethodGet, "/operator/keys", nil, nil, &keys)
	return keys, wrap("list keys", err)
}

// DeleteKey revokes an API key by its id.
func (c *Client) DeleteKey(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodDelete, "/operator/keys/"+url.PathEscape(id), nil, nil, nil)
	return wrap("delete key", err)
}

// AddTemplate makes a template of what lies on the server's machine or in a
// registry. It may take minutes.
func (c *Client) AddTemplate(ctx context.Context, spec api.NewTemplate) (api.Template, error) {
	var made api.Template
	_, err := c.call(ctx, http.MethodPost, "/operator/templates", nil, spec, &made)
	return made, wrap("add template", err)
}

// Templates lists the templates.
func (c *Client) Templates(ctx context.Context) ([]api.Template, error) {
	var templates []api.Template
	_, err := c.call(ctx, http.MethodGet, "/operator/templates", nil, nil, &templates)
	return templates, wrap("list templates", err)
}

// DeleteTemplate removes a template by its id or by one of its names.
func (c *Client) DeleteTemplate(ctx context.Context, ref string) error {
	_, err := c.call(ctx, http.MethodDelete, "/operator/templates/"+url.PathEscape(ref), nil, nil, nil)
	return wrap("delete template", err)
}
