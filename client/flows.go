package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
)

// FlowFilter says which records are wanted; all of it must hold. The zero
// FlowFilter wants every one.
type FlowFilter struct {
	// Verdict is "allow" or "deny", Direction "out" or "in".
	Verdict, Direction string
	// Protocol is tcp, udp, icmp, tls, http or dns.
	Protocol string
	// Name is a name, *.name for those below it, or * for any.
	Name string
	// Address is an address or a CIDR.
	Address string
	// Since is when a flow must have begun at the earliest.
	Since time.Time
	// Cursor wants only records after this one.
	Cursor uint64
	// Limit is how many records a page holds at most; 0 leaves it to the server.
	Limit int
	// Latest wants the last records that match rather than the first.
	Latest bool
}

func (f FlowFilter) query() url.Values {
	query := url.Values{}
	for name, value := range map[string]string{
		"verdict": f.Verdict, "direction": f.Direction, "protocol": f.Protocol, "name": f.Name, "address": f.Address,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if !f.Since.IsZero() {
		query.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	if f.Cursor != 0 {
		query.Set("cursor", strconv.FormatUint(f.Cursor, 10))
	}
	if f.Limit != 0 {
		query.Set("limit", strconv.Itoa(f.Limit))
	}
	if f.Latest {
		query.Set("latest", "true")
	}
	return query
}

// Flows returns one page of what a sandbox's network did. The page's Next, as
// the next filter's Cursor, goes on behind it. Records of a sandbox that has
// ended stay readable for a while.
func (c *Client) Flows(ctx context.Context, id string, f FlowFilter) (api.FlowPage, error) {
	var page api.FlowPage
	_, err := c.call(ctx, http.MethodGet, sandboxPath(id)+"/network/flows", f.query(), nil, &page)
	return page, wrap("list flows", err)
}

// FlowEvent is what comes next in a followed log: a record, or with Lost set
// the news that at least so many are missing here.
type FlowEvent struct {
	Flow api.FlowRecord
	Lost uint64
}

const (
	// reconnectFor is how long a stream that broke is tried to be taken up
	// again, so that a restart of the server does not end it.
	reconnectFor   = 30 * time.Second
	reconnectPause = 250 * time.Millisecond
	// eventLimit bounds one line of a stream, in bytes.
	eventLimit = 1 << 20
)

// FollowFlows yields records as they come, until the sandbox has ended or ctx
// ends, or with an error when the stream broke and cannot be taken up again.
func (c *Client) FollowFlows(ctx context.Context, id string, f FlowFilter) iter.Seq2[FlowEvent, error] {
	return func(yield func(FlowEvent, error) bool) {
		var until time.Time // as long as it is tried to take the stream up again
		for {
			ended, err := c.followOnce(ctx, id, &f, func(e FlowEvent) bool { return yield(e, nil) })
			if ended || ctx.Err() != nil {
				return
			}
			if errors.Is(err, errBroken) {
				until = time.Now().Add(reconnectFor)
			}
			var refused *Error
			if errors.As(err, &refused) && refused.Status < 500 || time.Now().After(until) {
				yield(FlowEvent{}, wrap("follow flows", err))
				return
			}
			select {
			case <-time.After(reconnectPause):
			case <-ctx.Done():
			}
		}
	}
}

// errBroken says that a stream had begun.
var errBroken = errors.New("the stream broke")

// followOnce reads one stream and keeps in f where to go on. ended says that
// nothing comes any more, or that nobody wants it.
func (c *Client) followOnce(ctx context.Context, id string, f *FlowFilter, yield func(FlowEvent) bool) (ended bool, err error) {
	query := f.query()
	query.Set("follow", "true")
	answer, err := c.open(ctx, sandboxPath(id)+"/network/flows", query)
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, eventLimit)
	var name string
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "event":
			name = value
		case "data":
			event, end, err := parseEvent(name, value)
			if err != nil {
				return false, err
			}
			if end || !yield(event) {
				return true, nil
			}
			if event.Flow.Cursor != 0 {
				f.Cursor, f.Latest = event.Flow.Cursor, false
			}
		}
	}
	return false, errors.Join(errBroken, lines.Err())
}

func parseEvent(name, data string) (e FlowEvent, end bool, err error) {
	switch name {
	case api.EventFlow:
		err = json.Unmarshal([]byte(data), &e.Flow)
	case api.EventLost:
		var lost api.FlowsLost
		err = json.Unmarshal([]byte(data), &lost)
		e.Lost = lost.Lost
	case api.EventEnd:
		return e, true, nil
	default:
		err = errors.New("it is not known")
	}
	if err != nil {
		return e, false, fmt.Errorf("read event %q: %w", name, err)
	}
	return e, false, nil
}

// open begins an answer that the caller reads, and closes.
func (c *Client) open(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	req, err := c.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		err := readError(answer)
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, errorLimit))
		answer.Body.Close()
		return nil, err
	}
	return answer, nil
}
