package control

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// maxMetricIDs bounds how many sandboxes one request may ask about.
const maxMetricIDs = 100

// metricsOfOne answers with the readings of a span of time.
func metricsOfOne(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	start, err := q.seconds("start")
	if err != nil {
		return err
	}
	end, err := q.seconds("end")
	if err != nil {
		return err
	}
	if !end.IsZero() {
		if end.Before(start) {
			return badRequest("start must not be after end")
		}
		end = end.Add(time.Second - time.Nanosecond) // to the end of that second
	}
	if _, err := c.sandbox(); err != nil {
		return err
	}
	samples, err := c.Engine.Samples(c.r.Context(), c.id, start, end)
	if err != nil {
		return err
	}
	metrics := make([]api.SandboxMetric, 0, len(samples))
	for _, s := range samples {
		metrics = append(metrics, metric(s))
	}
	return c.reply(http.StatusOK, metrics)
}

// metricsOfMany answers with the newest reading of each sandbox that is asked
// for, is the caller's and has one.
func metricsOfMany(c *call) error {
	ids, err := c.metricIDs()
	if err != nil {
		return err
	}
	newest := make(map[string]api.SandboxMetric, len(ids))
	for id := range ids {
		record, err := c.Store.Sandbox(c.r.Context(), id)
		if errors.Is(err, store.ErrNotFound) || err == nil && record.Team != c.team {
			continue
		}
		if err != nil {
			return err
		}
		// Only the past: taking fresh readings of many sandboxes would take long.
		samples, err := c.Engine.Samples(c.r.Context(), id, time.Time{}, time.Now())
		if err != nil && !errors.Is(err, sandbox.ErrNotFound) {
			return err
		}
		if len(samples) > 0 {
			newest[id] = metric(samples[len(samples)-1])
		}
	}
	return c.reply(http.StatusOK, api.SandboxesMetrics{Sandboxes: newest})
}

func (c *call) metricIDs() (map[string]struct{}, error) {
	q, err := c.query()
	if err != nil {
		return nil, err
	}
	text := q.get("sandbox_ids")
	if text == "" {
		return nil, badRequest("sandbox_ids is required")
	}
	ids := make(map[string]struct{})
	for field := range strings.SplitSeq(text, ",") {
		id, ok := shortID(field)
		if !ok {
			return nil, badRequest("sandbox_ids: invalid sandbox ID %q", clip(field))
		}
		if _, twice := ids[id]; twice {
			return nil, badRequest("sandbox_ids: %s was given twice", id)
		}
		ids[id] = struct{}{}
		if len(ids) > maxMetricIDs {
			return nil, badRequest("sandbox_ids: at most %d are accepted", maxMetricIDs)
		}
	}
	return ids, nil
}
