package control

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// filter narrows a list; all of it must hold.
type filter struct {
	metadata     []pair
	states       []api.State
	startedAfter time.Time
	template     func(store.Sandbox) bool
}

func (f filter) takes(s store.Sandbox) bool {
	return s.State == sandbox.Running && slices.Contains(f.states, api.StateRunning) &&
		!s.StartedAt.Before(f.startedAfter) &&
		matches(s.Metadata, f.metadata) && f.template(s)
}

// listV1 lists all running sandboxes, newest first.
func listV1(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	metadata, err := parseMetadata(q.get("metadata"))
	if err != nil {
		return err
	}
	records, err := c.find(filter{metadata: metadata, states: []api.State{api.StateRunning}, template: anyTemplate}, false)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, listedAll(records))
}

// listV2 lists one page.
func listV2(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	f, err := c.filter(q)
	if err != nil {
		return err
	}
	ascending, err := q.ascending()
	if err != nil {
		return err
	}
	limit, err := q.limit()
	if err != nil {
		return err
	}
	var after *cursor
	if token := q.get("nextToken"); token != "" {
		parsed, err := parseCursor(token)
		if err != nil {
			return err
		}
		after = &parsed
	}
	records, err := c.find(f, ascending)
	if err != nil {
		return err
	}
	if slices.Contains(f.states, api.StateRunning) {
		c.w.Header().Set(api.HeaderTotalRunning, strconv.Itoa(len(records)))
	}
	page, more := paginate(records, ascending, after, limit)
	if more {
		c.w.Header().Set(api.HeaderNextToken, cursorOf(page[len(page)-1]).String())
	}
	return c.reply(http.StatusOK, listedAll(page))
}

func (c *call) filter(q query) (f filter, err error) {
	if f.metadata, err = parseMetadata(q.get("metadata")); err != nil {
		return filter{}, err
	}
	if f.states, err = q.states(); err != nil {
		return filter{}, err
	}
	if f.startedAfter, err = q.startedAfter(); err != nil {
		return filter{}, err
	}
	if f.template, err = c.byTemplate(q.get("template")); err != nil {
		return filter{}, err
	}
	return f, nil
}

// byTemplate takes the sandboxes of one template, by its id or any of its
// names. Of a removed template only the id and the name it was asked for by
// are known.
func (c *call) byTemplate(ref string) (func(store.Sandbox) bool, error) {
	switch {
	case ref == "":
		return anyTemplate, nil
	case strings.ContainsRune(ref, ':'):
		return nil, badRequest("template must be an id or a name without a tag, got %q", clip(ref))
	}
	template, err := c.Store.Template(c.r.Context(), ref) // also one that is damaged by now
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	return func(s store.Sandbox) bool {
		return s.TemplateID == ref || s.Alias == ref || template.ID != "" && s.TemplateID == template.ID
	}, nil
}

func anyTemplate(store.Sandbox) bool { return true }

// find returns the caller's sandboxes that the filter takes, in order.
func (c *call) find(f filter, ascending bool) ([]store.Sandbox, error) {
	records, err := c.Store.Sandboxes(c.r.Context(), c.team)
	if err != nil {
		return nil, err
	}
	records = slices.DeleteFunc(records, func(s store.Sandbox) bool { return !f.takes(s) })
	slices.SortFunc(records, func(a, b store.Sandbox) int {
		if !ascending {
			a, b = b, a
		}
		return cursorOf(a).compare(cursorOf(b))
	})
	return records, nil
}

// paginate cuts one page out of sorted records and says whether more follow.
func paginate(records []store.Sandbox, ascending bool, after *cursor, limit int) (page []store.Sandbox, more bool) {
	if after != nil {
		first := slices.IndexFunc(records, func(s store.Sandbox) bool {
			order := cursorOf(s).compare(*after)
			return ascending && order > 0 || !ascending && order < 0
		})
		if first < 0 {
			return nil, false
		}
		records = records[first:]
	}
	if len(records) <= limit {
		return records, false
	}
	return records[:limit], true
}

func listedAll(records []store.Sandbox) []api.ListedSandbox {
	all := make([]api.ListedSandbox, 0, len(records))
	for _, s := range records {
		all = append(all, listed(s))
	}
	return all
}
