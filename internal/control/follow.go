package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
)

const (
	// stillThere is how often a quiet stream says something, so that whoever is
	// in between does not take it for dead.
	stillThere = 15 * time.Second
	// streamWrite bounds one write: a client that does not read is let go, and
	// can come back for what it has missed.
	streamWrite = 30 * time.Second
	// maxStreams bounds how many logs a team follows at once: each record wakes
	// all of them.
	maxStreams = 64
)

// streams counts the logs that teams follow.
type streams struct {
	mu   sync.Mutex
	open map[string]int
}

func (s *streams) enter(team string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[team] >= maxStreams {
		return &fault{
			status:  http.StatusTooManyRequests,
			message: fmt.Sprintf("your team follows %d logs already, which is as many as it may", maxStreams),
		}
	}
	if s.open == nil {
		s.open = make(map[string]int)
	}
	s.open[team]++
	return nil
}

func (s *streams) leave(team string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[team]--; s.open[team] == 0 {
		delete(s.open, team)
	}
}

// followFlows answers with server-sent events until the sandbox has ended, the
// client leaves or the server stops. A client that comes back says in
// Last-Event-ID what it has read, which goes before what its URL still says.
func (c *call) followFlows(f audit.Filter) error {
	last, err := parseFlowCursor("Last-Event-ID", c.r.Header.Get("Last-Event-ID"))
	if err != nil {
		return err
	}
	if last != 0 {
		f.Since, f.Latest = last, false
	}
	if err := c.streams.enter(c.team); err != nil {
		return err
	}
	defer c.streams.leave(c.team)
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	defer context.AfterFunc(c.Lifetime, cancel)()

	out := c.stream()
	if f.Latest {
		page := c.Flows.Query(f)
		page.Lost = 0 // who asks for the end does not miss the beginning
		out.page(page)
		f.Since, f.Latest = page.Next, false
	}
	follower := c.Flows.Follow(f)
	defer follower.Close()
	for out.err == nil && ctx.Err() == nil {
		err := out.next(ctx, follower)
		if errors.Is(err, audit.ErrEnded) {
			out.event(api.EventEnd, 0, api.FlowsEnd{Reason: err.Error()})
			out.flush()
			return nil
		}
	}
	return nil // the client has gone, or will come back
}

// stream writes server-sent events. After a failure it does nothing any more.
type stream struct {
	w    http.ResponseWriter
	ctrl *http.ResponseController
	err  error
}

// stream begins the answer.
func (c *call) stream() *stream {
	c.answered = true
	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	c.w.WriteHeader(http.StatusOK)
	s := &stream{w: c.w, ctrl: http.NewResponseController(c.w)}
	s.flush() // who follows a quiet log shall know that it does
	return s
}

// next writes what comes next, or that nothing did.
func (s *stream) next(ctx context.Context, follower *audit.Follower) error {
	ctx, cancel := context.WithTimeout(ctx, stillThere)
	defer cancel()
	page, err := follower.Next(ctx)
	s.page(page) // also with an error: it may tell of losses
	if errors.Is(err, context.DeadlineExceeded) {
		s.write(": still here\n\n")
		s.flush()
	}
	return err
}

func (s *stream) page(page audit.Page) {
	if page.Lost > 0 {
		s.event(api.EventLost, 0, api.FlowsLost{Lost: page.Lost})
	}
	for _, r := range page.Records {
		s.event(api.EventFlow, r.Cursor, flowRecord(r))
	}
	s.flush()
}

// event writes one event, which flush sends; 0 is no id.
func (s *stream) event(name string, id uint64, data any) {
	raw, err := json.Marshal(data)
	if err != nil {
		s.err = errors.Join(s.err, err)
		return
	}
	if id != 0 {
		s.write(fmt.Sprintf("id: %d\n", id))
	}
	s.write(fmt.Sprintf("event: %s\ndata: %s\n\n", name, raw))
}

func (s *stream) write(text string) {
	if s.err != nil {
		return
	}
	if err := s.ctrl.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.err = err
		return
	}
	_, s.err = s.w.Write([]byte(text))
}

func (s *stream) flush() {
	if s.err == nil {
		s.err = s.ctrl.Flush()
	}
}
