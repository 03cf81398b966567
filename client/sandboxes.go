package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
)

// CreateSandbox makes a sandbox. Its daemon is always guarded by a token.
func (c *Client) CreateSandbox(ctx context.Context, spec api.NewSandbox) (api.Sandbox, error) {
	var made api.Sandbox
	_, err := c.call(ctx, http.MethodPost, "/v2/sandboxes", nil, spec, &made)
	return made, wrap("create sandbox", err)
}

// Sandbox describes a sandbox.
func (c *Client) Sandbox(ctx context.Context, id string) (api.SandboxDetail, error) {
	var detail api.SandboxDetail
	_, err := c.call(ctx, http.MethodGet, sandboxPath(id), nil, nil, &detail)
	return detail, wrap("get sandbox", err)
}

// Connect returns what is needed to use a sandbox, its tokens included. Where
// timeout is longer than what is left of the sandbox's life, it extends it.
func (c *Client) Connect(ctx context.Context, id string, timeout time.Duration) (api.Sandbox, error) {
	var connected api.Sandbox
	_, err := c.call(ctx, http.MethodPost, "/v2"+sandboxPath(id)+"/connect", nil, api.Connect{Timeout: seconds(timeout)}, &connected)
	return connected, wrap("connect sandbox", err)
}

// RotateTrafficToken replaces the traffic token of a sandbox that is not open to
// everybody. Once it returns, the old one lets nobody in, and what it had let in
// is cut. It returns a secret.
func (c *Client) RotateTrafficToken(ctx context.Context, id string) (api.TrafficToken, error) {
	var token api.TrafficToken
	_, err := c.call(ctx, http.MethodPost, sandboxPath(id)+"/traffic-token", nil, nil, &token)
	return token, wrap("rotate traffic token", err)
}

// Link makes a URL that opens a private port of a sandbox to whoever follows it
// in a browser, for that long; 0 leaves it to the server. It returns a secret,
// which RotateTrafficToken makes worthless.
func (c *Client) Link(ctx context.Context, id string, port int, life time.Duration) (api.Link, error) {
	wanted := api.NewLink{Port: port}
	if life != 0 {
		wanted.Seconds = seconds(life)
	}
	var made api.Link
	_, err := c.call(ctx, http.MethodPost, sandboxPath(id)+"/links", nil, wanted, &made)
	return made, wrap("make link", err)
}

// Kill ends a sandbox.
func (c *Client) Kill(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodDelete, sandboxPath(id), nil, nil, nil)
	return wrap("kill sandbox", err)
}

// SetTimeout lets a sandbox live for that long from now; it may shorten its
// life. It is rounded up to seconds; 0 ends the sandbox at once.
func (c *Client) SetTimeout(ctx context.Context, id string, timeout time.Duration) error {
	_, err := c.call(ctx, http.MethodPost, sandboxPath(id)+"/timeout", nil, api.Timeout{Timeout: seconds(timeout)}, nil)
	return wrap("set timeout", err)
}

// Metrics returns readings of a sandbox's resources, oldest first. A zero start
// or end leaves that side open.
func (c *Client) Metrics(ctx context.Context, id string, start, end time.Time) ([]api.SandboxMetric, error) {
	query := url.Values{}
	for name, at := range map[string]time.Time{"start": start, "end": end} {
		if !at.IsZero() {
			query.Set(name, strconv.FormatInt(at.Unix(), 10))
		}
	}
	var metrics []api.SandboxMetric
	_, err := c.call(ctx, http.MethodGet, sandboxPath(id)+"/metrics", query, nil, &metrics)
	return metrics, wrap("get metrics", err)
}

// Filter narrows a list of sandboxes; all of it must hold. The zero Filter
// takes every sandbox of the caller's.
type Filter struct {
	// Metadata must be among the sandbox's own.
	Metadata map[string]string
	// States to list; empty means all.
	States []api.State
	// Template is an id or a name.
	Template string
	// PageSize is how many to ask for at once; 0 leaves it to the server.
	PageSize int
}

func (f Filter) query() url.Values {
	query := url.Values{}
	if len(f.Metadata) > 0 {
		// E2B escapes keys and values once more than a query needs.
		pairs := url.Values{}
		for k, v := range f.Metadata {
			pairs.Set(escape(k), escape(v))
		}
		query.Set("metadata", pairs.Encode())
	}
	if len(f.States) > 0 {
		states := make([]string, len(f.States))
		for i, s := range f.States {
			states[i] = string(s)
		}
		query.Set("state", strings.Join(states, ","))
	}
	if f.Template != "" {
		query.Set("template", f.Template)
	}
	if f.PageSize > 0 {
		query.Set("limit", strconv.Itoa(f.PageSize))
	}
	return query
}

// escape percent-encodes text as JavaScript's encodeURIComponent does.
func escape(text string) string {
	return strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
}

// Sandboxes lists sandboxes, newest first, asking for page after page while the
// caller goes on. It ends with the first error.
func (c *Client) Sandboxes(ctx context.Context, f Filter) iter.Seq2[api.ListedSandbox, error] {
	return func(yield func(api.ListedSandbox, error) bool) {
		for query := f.query(); ; {
			var page []api.ListedSandbox
			header, err := c.call(ctx, http.MethodGet, "/v2/sandboxes", query, nil, &page)
			if err != nil {
				yield(api.ListedSandbox{}, wrap("list sandboxes", err))
				return
			}
			for _, s := range page {
				if !yield(s, nil) {
					return
				}
			}
			next := header.Get(api.HeaderNextToken)
			if next == "" {
				return
			}
			query.Set("nextToken", next)
		}
	}
}

func sandboxPath(id string) string { return "/sandboxes/" + url.PathEscape(id) }

// seconds rounds up, so that a life never becomes shorter than asked for.
func seconds(d time.Duration) *int64 {
	s := int64((d + time.Second - 1) / time.Second)
	return &s
}
