package control

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
)

// maxPage bounds, and is the default of, the entries of one page.
const maxPage = 100

// query is a parsed query string in which no parameter may come twice: which
// of the two counts would be a guess.
type query url.Values

func (c *call) query() (query, error) {
	values, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("Invalid query string: %v", err)
	}
	for name, all := range values {
		if len(all) > 1 {
			return nil, badRequest("Query parameter %s was given %d times", clip(name), len(all))
		}
	}
	return query(values), nil
}

func (q query) get(name string) string { return url.Values(q).Get(name) }

// limit is the page size.
func (q query) limit() (int, error) { return q.number("limit", maxPage, maxPage) }

// number is a number from 1 on.
func (q query) number(name string, preset, most int) (int, error) {
	text := q.get(name)
	if text == "" {
		return preset, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, badRequest("%s must be a number from 1 to %d, got %q", name, most, clip(text))
	}
	return n, nil
}

// flag is true or false; false where it is not given.
func (q query) flag(name string) (bool, error) {
	switch text := q.get(name); text {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	default:
		return false, badRequest("%s must be true or false, got %q", name, clip(text))
	}
}

// states are the wanted states; all of them unless some are named.
func (q query) states() ([]api.State, error) {
	text := q.get("state")
	if text == "" {
		return []api.State{api.StateRunning, api.StatePaused}, nil
	}
	var states []api.State
	for name := range strings.SplitSeq(text, ",") {
		state := api.State(name)
		if state != api.StateRunning && state != api.StatePaused {
			return nil, badRequest("state must be %s or %s, got %q", api.StateRunning, api.StatePaused, clip(name))
		}
		states = append(states, state)
	}
	return states, nil
}

// ascending says whether the oldest come first.
func (q query) ascending() (bool, error) {
	switch order := q.get("order"); order {
	case "", "desc":
		return false, nil
	case "asc":
		return true, nil
	default:
		return false, badRequest("order must be asc or desc, got %q", clip(order))
	}
}

// startedAfter is the earliest start that is wanted; zero for any.
func (q query) startedAfter() (time.Time, error) {
	t, err := q.instant("startedAfter")
	return t.Truncate(time.Microsecond), err
}

// instant is a time; zero where none is given.
func (q query) instant(name string) (time.Time, error) {
	text := q.get(name)
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, badRequest("%s must be an RFC 3339 time, got %q", name, clip(text))
	}
	return t, nil
}

// seconds is a time in unix seconds; zero where none is given.
func (q query) seconds(name string) (time.Time, error) {
	text := q.get(name)
	if text == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > maxUnix {
		return time.Time{}, badRequest("%s must be a time in unix seconds, got %q", name, clip(text))
	}
	return time.Unix(n, 0), nil
}

// maxUnix is the end of the year 9999, beyond which times cannot be written.
const maxUnix = 253402300799

// pair is one key and value that a sandbox's metadata must have.
type pair struct{ key, value string }

// parseMetadata reads a metadata filter. E2B's clients encode it three times:
// each key and value, the pairs as a form, the form as a query value. The last
// of these is undone already.
func parseMetadata(text string) ([]pair, error) {
	form, err := url.ParseQuery(text)
	if err != nil {
		return nil, badRequest("Invalid metadata filter: %v", err)
	}
	var pairs []pair
	for key, values := range form {
		for _, value := range values {
			k, err := url.QueryUnescape(key)
			if err != nil {
				return nil, badRequest("Invalid metadata filter: key: %v", err)
			}
			v, err := url.QueryUnescape(value)
			if err != nil {
				return nil, badRequest("Invalid metadata filter: value: %v", err)
			}
			pairs = append(pairs, pair{k, v})
		}
	}
	return pairs, nil
}

// matches says whether metadata has every pair.
func matches(metadata map[string]string, pairs []pair) bool {
	return !slices.ContainsFunc(pairs, func(p pair) bool {
		value, has := metadata[p.key]
		return !has || value != p.value
	})
}
