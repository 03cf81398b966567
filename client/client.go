// Package client speaks to a moat server: E2B's REST API, the operator's routes
// on its unix socket, and the daemon inside each sandbox.
//
//	c, err := client.New(client.Config{APIURL: "http://127.0.0.1:6628", SandboxURL: "http://127.0.0.1:6628", APIKey: key})
//	made, err := c.CreateSandbox(ctx, api.NewSandbox{TemplateID: "base"})
//	box := c.Open(made)
//	exit, err := box.Commands.Run(ctx, client.Command{Args: []string{"uname", "-a"}, Stdout: os.Stdout})
//	err = c.Kill(ctx, made.SandboxID)
//
// It reads no environment variables and no files. What a server refuses comes
// back as an *Error.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
)

// Config says where the server is.
type Config struct {
	// APIURL is the base of the REST API; empty means "https://api." and Domain.
	APIURL string
	// SandboxURL is one base for the daemons of all sandboxes, which are then
	// told apart by headers. Empty means one host for each, below the domain.
	SandboxURL string
	// APIKey says who the caller is. It is a secret. Only the operator's socket
	// does without.
	APIKey string
	// Domain is the name below which sandboxes are, for those whose server does
	// not say.
	Domain string
	// Socket is the path of the operator's unix socket, which serves all of the
	// above and the operator's routes. It excludes the other fields but APIKey.
	Socket string
	// HTTP makes the connections; nil means a client of its own.
	HTTP *http.Client
}

// Client speaks to one server. It is safe for concurrent use.
type Client struct {
	http       *http.Client
	apiURL     *url.URL
	sandboxURL *url.URL // nil: a host for each sandbox
	domain     string
	// key sits behind a pointer, so that no formatting verb shows it.
	key *string
}

// New checks the configuration. It sends nothing.
func New(c Config) (*Client, error) {
	if c.Socket != "" {
		return newOnSocket(c)
	}
	if c.APIURL == "" && c.Domain == "" {
		return nil, errors.New("client: one of APIURL, Domain and Socket is needed")
	}
	if c.APIURL == "" {
		c.APIURL = "https://api." + c.Domain
	}
	if c.HTTP == nil {
		c.HTTP = &http.Client{Transport: newTransport()}
	}
	return build(c)
}

func newOnSocket(c Config) (*Client, error) {
	if c.APIURL != "" || c.SandboxURL != "" || c.Domain != "" || c.HTTP != nil {
		return nil, errors.New("client: Socket excludes APIURL, SandboxURL, Domain and HTTP")
	}
	transport, path := newTransport(), c.Socket
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	c.HTTP = &http.Client{Transport: transport}
	// The server routes requests for this host by their headers.
	c.APIURL, c.SandboxURL = "http://localhost", "http://localhost"
	return build(c)
}

// newTransport keeps as many connections as one caller's streams and calls hold
// at once. It asks no proxy: the environment is not read.
func newTransport() *http.Transport {
	return &http.Transport{
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second,
	}
}

func build(c Config) (*Client, error) {
	apiURL, err := parseBase("APIURL", c.APIURL)
	if err != nil {
		return nil, err
	}
	built := &Client{http: withoutRedirects(c.HTTP), apiURL: apiURL, domain: c.Domain, key: &c.APIKey}
	if c.SandboxURL != "" {
		if built.sandboxURL, err = parseBase("SandboxURL", c.SandboxURL); err != nil {
			return nil, err
		}
	}
	return built, nil
}

func parseBase(field, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("client: %s: %w", field, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("client: %s: %q is not an http or https base URL", field, u.Redacted())
	}
	return u, nil
}

// withoutRedirects follows none: the headers that authenticate a request would
// go along to wherever an answer points.
func withoutRedirects(given *http.Client) *http.Client {
	own := *given
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &own
}

// Close closes idle connections. The client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Health asks whether the server is ready.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	var health api.Health
	_, err := c.call(ctx, http.MethodGet, "/health", nil, nil, &health)
	return health, wrap("health", err)
}

// answerLimit bounds what is read of an answer, in bytes.
const answerLimit = 64 << 20

// call sends one request with in as its JSON body, where in is not nil, and
// decodes the answer into out, where out is not nil.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) (http.Header, error) {
	req, err := c.request(ctx, method, path, query, in)
	if err != nil {
		return nil, err
	}
	return c.do(req, out)
}

// request prepares what call sends.
func (c *Client) request(ctx context.Context, method, path string, query url.Values, in any) (*http.Request, error) {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(raw)
	}
	target := strings.TrimSuffix(c.apiURL.String(), "/") + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if *c.key != "" {
		req.Header.Set(api.HeaderAPIKey, *c.key)
	}
	return req, nil
}

// do sends a request and decodes the answer.
func (c *Client) do(req *http.Request, out any) (http.Header, error) {
	answer, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return nil, readError(answer)
	}
	if out == nil || answer.StatusCode == http.StatusNoContent {
		return answer.Header, nil
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, answerLimit)).Decode(out); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	return answer.Header, nil
}
