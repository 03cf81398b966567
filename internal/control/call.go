package control

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// requestTimeout bounds what one request may take, but for the operator's
// template imports.
const requestTimeout = 70 * time.Second

// call is one request being answered.
type call struct {
	*API
	w    http.ResponseWriter
	r    *http.Request
	team string // whom it acts for

	id       string // the sandbox it is about, once known to be well-formed
	answered bool
}

// finish runs the handler and answers for its error, or its panic.
func (c *call) finish(handle func() error) {
	defer func() {
		switch v := recover(); v {
		case nil:
		case http.ErrAbortHandler:
			panic(v)
		default:
			c.fail(fmt.Errorf("panic: %v\n%s", v, debug.Stack()))
		}
	}()
	c.limitBody()
	if err := handle(); err != nil {
		c.fail(err)
	}
}

// lasting is the request's context for changes that must not stop halfway when
// the client goes away.
func (c *call) lasting() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.r.Context()), requestTimeout)
}

// reply answers with JSON.
func (c *call) reply(status int, body any) error {
	// Text that clients sent may come back in an error; invalid UTF-8 in it
	// must not keep the answer from being encoded.
	raw, err := json.Marshal(body, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return err
	}
	c.answered = true
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(raw) // the client has gone: nobody is left to tell
	return nil
}

// done answers without a body.
func (c *call) done() error {
	c.answered = true
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// fail answers with an error. It is the only place where errors meet HTTP.
func (c *call) fail(err error) {
	f := c.explain(err)
	if c.answered {
		return
	}
	for name, values := range f.header {
		c.w.Header()[name] = values
	}
	_ = c.reply(f.status, api.Error{Code: f.status, Message: f.message, ErrorCode: f.code})
}

// sandboxID reads the id from the path. E2B's older clients write
// <id>-<clientID>; the second half is dropped.
func (c *call) sandboxID() error {
	short, ok := shortID(c.r.PathValue("sandboxID"))
	if !ok {
		return badRequest("Invalid sandbox ID")
	}
	c.id = short
	return nil
}

func shortID(s string) (id string, ok bool) {
	dashes := 0
	end := len(s)
	for i, b := range []byte(s) {
		switch {
		case b == '-' && dashes == 0:
			dashes, end = 1, i
		case (b < 'a' || b > 'z') && (b < '0' || b > '9'):
			return "", false
		}
	}
	return s[:end], end > 0 && !(dashes == 1 && end == len(s)-1)
}

// sandbox loads the running sandbox that the path names. Another team's is as
// unknown as one that never was.
func (c *call) sandbox() (store.Sandbox, error) {
	if err := c.sandboxID(); err != nil {
		return store.Sandbox{}, err
	}
	record, err := c.Store.Sandbox(c.r.Context(), c.id)
	switch {
	case err != nil:
		return store.Sandbox{}, err
	case record.Team != c.team:
		return store.Sandbox{}, sandbox.ErrNotFound
	case record.State != sandbox.Running:
		return store.Sandbox{}, sandbox.ErrNotRunning
	}
	return record, nil
}
