package client

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/api/filesystem"
	"github.com/moat-sandbox/moat/api/process"
)

// Sandbox is the inside of one sandbox, reached through its daemon.
type Sandbox struct {
	ID       string
	Commands *Commands
	Files    *Files

	client *Client
	domain string
	token  *string // behind a pointer, as Client.key
	user   string
}

// Open gives access to the inside of a sandbox that CreateSandbox or Connect
// returned. It sends nothing.
func (c *Client) Open(s api.Sandbox) *Sandbox {
	box := &Sandbox{ID: s.SandboxID, client: c, domain: c.domain, token: &s.EnvdAccessToken}
	if s.Domain != nil && *s.Domain != "" {
		box.domain = *s.Domain
	}
	return box.As("")
}

// As returns the same sandbox, its commands and files used as the named user of
// its own. Empty means the sandbox's default user.
func (s *Sandbox) As(user string) *Sandbox {
	as := *s
	as.user = user
	door, base := as.door(), as.daemonURL()
	options := connect.WithClientOptions(
		// Anything may run on the daemon's port: its messages are bounded.
		connect.WithReadMaxBytes(messageLimit),
		// Most sandboxes are near; compressing would only cost.
		connect.WithAcceptCompression("gzip", nil, nil),
	)
	as.Commands = &Commands{rpc: process.NewProcessClient(door, base, options)}
	as.Files = &Files{rpc: filesystem.NewFilesystemClient(door, base, options), door: door, base: base, user: user}
	return &as
}

// messageLimit bounds one message of a daemon, in bytes.
const messageLimit = 16 << 20

// Host is the public name of a port of the sandbox, as E2B's getHost gives it.
func (s *Sandbox) Host(port int) string {
	return strconv.Itoa(port) + "-" + s.ID + "." + s.domain
}

// URL is the public address of a port of the sandbox. Its scheme is the one the
// client uses for the API.
func (s *Sandbox) URL(port int) string {
	u := url.URL{Scheme: s.client.apiURL.Scheme, Host: s.Host(port)}
	return u.String()
}

// daemonURL is where the daemon is. When nobody named a domain it is tried at
// the API's own address, where a server without one routes by headers.
func (s *Sandbox) daemonURL() string {
	switch {
	case s.client.sandboxURL != nil:
		return s.client.sandboxURL.String()
	case s.domain == "":
		return s.client.apiURL.String()
	default:
		return s.URL(api.GuestPort)
	}
}

// door sends requests to the daemon with the headers that route and admit them.
type door struct {
	http   *http.Client
	header http.Header
}

func (s *Sandbox) door() *door {
	header := http.Header{}
	header.Set("E2b-Sandbox-Id", s.ID)
	header.Set("E2b-Sandbox-Port", strconv.Itoa(api.GuestPort))
	if *s.token != "" {
		header.Set("X-Access-Token", *s.token)
	}
	if s.user != "" {
		header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(s.user+":")))
	}
	return &door{http: s.client.http, header: header}
}

// Do implements connect.HTTPClient. A refusal that is not in a call's own form,
// by the gateway or for want of a token, becomes an *Error here.
func (d *door) Do(req *http.Request) (*http.Response, error) {
	for name, values := range d.header {
		req.Header[name] = values
	}
	answer, err := d.http.Do(req)
	if err != nil || answer.StatusCode < 300 {
		return answer, err
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, errorLimit))
	_ = answer.Body.Close() // whatever is left of it is of no use
	if err != nil {
		return nil, err
	}
	answer.Body = io.NopCloser(bytes.NewReader(body))
	if isCallError(body) {
		return answer, nil
	}
	return nil, readError(answer)
}

// isCallError reports whether the body is an error in the Connect protocol's
// form, whose code is a word.
func isCallError(body []byte) bool {
	var wire struct {
		Code string `json:"code"`
	}
	return json.Unmarshal(body, &wire) == nil && wire.Code != ""
}
