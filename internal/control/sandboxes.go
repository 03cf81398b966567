package control

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// Bounds of a refresh.
const (
	minRefresh = 15 * time.Second
	maxRefresh = time.Hour
)

func health(c *call) error {
	return c.reply(http.StatusOK, api.Health{Status: "ok", Sandboxes: c.Engine.Count()})
}

func get(c *call) error {
	record, err := c.sandbox()
	if errors.Is(err, sandbox.ErrNotRunning) {
		return sandbox.ErrNotFound // being killed
	}
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, c.detail(record))
}

// kill answers 404 for a sandbox that somebody else is killing: E2B's clients
// take that for "it was gone already".
func kill(c *call) error {
	_, err := c.sandbox()
	if errors.Is(err, sandbox.ErrNotRunning) {
		return sandbox.ErrNotFound
	}
	if err != nil {
		return err
	}
	ctx, cancel := c.lasting()
	defer cancel()
	if err := c.Engine.Kill(ctx, c.id); err != nil {
		return err
	}
	return c.done()
}

// connectV1 serves two kinds of clients. E2B's demand the traffic token again
// and always send a timeout here. CubeSandbox's send none and are told the token
// at create only: "single delivery" is a promise to them.
func connectV1(c *call) error {
	return c.connect(func(body api.Connect) bool { return body.Timeout != nil })
}

// connectV2 is E2B's alone.
func connectV2(c *call) error {
	return c.connect(func(api.Connect) bool { return true })
}

func (c *call) connect(withTrafficToken func(api.Connect) bool) error {
	var body api.Connect
	if err := c.sandboxID(); err != nil {
		return err
	}
	if err := c.body(&body, true); err != nil {
		return err
	}
	timeout, err := c.timeout(body.Timeout)
	if err != nil {
		return err
	}
	if _, err := c.sandbox(); err != nil {
		return err
	}
	record, err := c.Engine.SetEnd(c.r.Context(), c.id, time.Now().Add(timeout), true)
	if err != nil {
		return err
	}
	answer := c.connection(record)
	if !withTrafficToken(body) {
		answer.TrafficAccessToken = nil
	}
	return c.reply(http.StatusOK, answer)
}

func setTimeout(c *call) error {
	var body api.Timeout
	if err := c.sandboxID(); err != nil {
		return err
	}
	if err := c.body(&body, false); err != nil {
		return err
	}
	if body.Timeout == nil {
		return badRequest("timeout is required")
	}
	timeout, err := c.timeout(body.Timeout)
	if err != nil {
		return err
	}
	return c.setEnd(timeout, false)
}

func refresh(c *call) error {
	var body api.Refresh
	if err := c.sandboxID(); err != nil {
		return err
	}
	if err := c.body(&body, true); err != nil {
		return err
	}
	duration := minRefresh
	if d := body.Duration; d != nil {
		if *d < 0 || *d > int64(maxRefresh/time.Second) {
			return badRequest("duration must be from 0 to %d seconds, got %d", maxRefresh/time.Second, *d)
		}
		duration = max(duration, time.Duration(*d)*time.Second)
	}
	return c.setEnd(min(duration, c.MaxTimeout), true)
}

// setEnd moves the end of the sandbox that the path names.
func (c *call) setEnd(fromNow time.Duration, extendOnly bool) error {
	if _, err := c.sandbox(); err != nil {
		return err
	}
	if _, err := c.Engine.SetEnd(c.r.Context(), c.id, time.Now().Add(fromNow), extendOnly); err != nil {
		return err
	}
	return c.done()
}

// firstTimeout is timeout for a sandbox that does not live yet.
func (c *call) firstTimeout(seconds *int64) (time.Duration, error) {
	switch {
	case seconds != nil && *seconds == 0:
		return 0, badRequest("Timeout must be greater than 0")
	case seconds != nil && *seconds < 0:
		return 0, badRequest("Timeout must be greater than 0, got %d%s", *seconds, c.noEternity())
	}
	return c.timeout(seconds)
}

// timeout checks a time to live in seconds; nil gives the default.
func (c *call) timeout(seconds *int64) (time.Duration, error) {
	switch {
	case seconds == nil:
		return min(defaultTimeout, c.MaxTimeout), nil
	case *seconds < 0:
		return 0, badRequest("Timeout must not be negative, got %d%s", *seconds, c.noEternity())
	case *seconds > int64(c.MaxTimeout/time.Second):
		return 0, badRequest("Timeout cannot be greater than %s", inHours(c.MaxTimeout))
	}
	return time.Duration(*seconds) * time.Second, nil
}

// noEternity tells those who say -1 for "never", as CubeSandbox lets them, what
// there is instead.
func (c *call) noEternity() string {
	return ": every sandbox ends, after at most " + inHours(c.MaxTimeout)
}

func inHours(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}

func deleteSnapshot(c *call) error {
	return &fault{status: http.StatusNotFound, message: fmt.Sprintf("Snapshot %q not found", clip(c.r.PathValue("templateID")))}
}
