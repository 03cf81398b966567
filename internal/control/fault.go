package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// fault is an error whose text is meant for the client.
type fault struct {
	status  int
	message string
	code    string // api.Error.ErrorCode
	header  http.Header
}

func (f *fault) Error() string { return f.message }

func badRequest(format string, args ...any) *fault {
	return &fault{status: http.StatusBadRequest, message: fmt.Sprintf(format, args...)}
}

func templateNotFound(ref string) *fault {
	return &fault{status: http.StatusNotFound, message: fmt.Sprintf("Template %q not found: no template has this id or name", clip(ref))}
}

// statusClientGone is what nginx logs for a client that did not wait; nobody
// receives it.
const statusClientGone = 499

// explain maps an error to an answer. What it does not know is internal: the
// client gets an id, the log the rest.
func (c *call) explain(err error) *fault {
	var known *fault
	var entry *policy.EntryError
	var setting *policy.SettingError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &entry):
		return badRequest("%s", entry)
	case errors.As(err, &setting):
		return badRequest("%s", setting)
	case c.id != "" && (errors.Is(err, sandbox.ErrNotFound) || errors.Is(err, store.ErrNotFound)):
		return &fault{status: http.StatusNotFound, message: fmt.Sprintf("Sandbox %q doesn't exist or you don't have access to it", c.id)}
	case errors.Is(err, sandbox.ErrNotRunning):
		return &fault{status: http.StatusConflict, message: fmt.Sprintf("Sandbox %q is being killed", c.id)}
	case errors.Is(err, sandbox.ErrGeneration):
		return &fault{status: http.StatusPreconditionFailed, message: "The network of the sandbox was changed meanwhile: read it again, and send its new ETag as If-Match"}
	case errors.Is(err, sandbox.ErrNoGrant):
		return &fault{status: http.StatusNotFound, message: fmt.Sprintf("Sandbox %q has no such grant: it has ended, or there never was one", c.id)}
	case errors.Is(err, sandbox.ErrGrants):
		return &fault{status: http.StatusConflict, message: fmt.Sprintf("Sandbox %q has %d grants already, as many as it may have", c.id, sandbox.MaxGrants)}
	case errors.Is(err, sandbox.ErrPublic):
		return &fault{status: http.StatusConflict, message: fmt.Sprintf("Sandbox %q is open to everybody: it has no traffic token", c.id)}
	case errors.Is(err, sandbox.ErrTemplateNotFound):
		return &fault{status: http.StatusNotFound, message: "Template not found"}
	case errors.Is(err, sandbox.ErrTeamLimit):
		return &fault{status: http.StatusTooManyRequests, message: "you have reached the maximum number of concurrent sandboxes of your team: kill one or wait for one to time out"}
	case errors.Is(err, sandbox.ErrNoCapacity):
		return &fault{
			status: http.StatusServiceUnavailable, code: api.CodeCapacity,
			message: "Failed to place sandbox: no capacity for another sandbox on this server",
			header:  http.Header{"Retry-After": {"5"}},
		}
	case errors.Is(err, store.ErrFull):
		c.Logger.Error("api request failed: storage is full", "route", c.r.Pattern, "sandbox", c.id, "error", err)
		return &fault{status: http.StatusInsufficientStorage, message: "The server's disk is full: nothing was changed"}
	case errors.Is(c.r.Context().Err(), context.Canceled):
		return &fault{status: statusClientGone, message: "Client closed the request"}
	case errors.Is(err, context.DeadlineExceeded):
		c.Logger.Error("api request timed out", "route", c.r.Pattern, "sandbox", c.id, "error", err)
		return &fault{status: http.StatusGatewayTimeout, code: api.CodeTimeout, message: "Failed to place sandbox or to change it: the server was not ready in time"}
	}
	return c.internal(err)
}

// internal hides an error behind an id.
func (c *call) internal(err error) *fault {
	id := rand.Text()
	c.Logger.Error("api request failed", "request", id, "method", c.r.Method, "route", c.r.Pattern, "team", c.team, "sandbox", c.id, "error", err)
	f := &fault{status: http.StatusInternalServerError, code: api.CodeInternal, message: "Internal server error, request " + id}
	if errors.Is(err, sandbox.ErrTemplateBroken) {
		f.code, f.message = api.CodeCreateFailed, "The template is damaged: its files on the server are missing or unreadable, request "+id
	}
	return f
}

// clip shortens text of a client that an error quotes.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
