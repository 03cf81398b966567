package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

// flowLog is one run of `moat net log`.
type flowLog struct {
	*cli
	filter client.FlowFilter
	since  string
	last   int
	follow bool
}

func (c *cli) netLogCommand() *cobra.Command {
	l := &flowLog{cli: c}
	cmd := &cobra.Command{
		Use:   "log ID",
		Short: "Show what a sandbox's network did, and why",
		Long: "Show what a sandbox's network did, and why: every flow, request and DNS query, allowed or\n" +
			"refused. A refused one is there at once, all others when they have ended. The records of\n" +
			"a sandbox that has ended stay for about an hour.",
		Example: "  moat net log -f ID\n  moat net log ID --verdict deny --since 10m --json",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			if err := l.prepare(); err != nil {
				return usageError{err}
			}
			l.header()
			if l.follow {
				return l.stream(ctx, server, args[0])
			}
			return l.pages(ctx, server, args[0])
		}),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&l.follow, "follow", "f", false, "go on as records come, until the sandbox ends")
	flags.IntVarP(&l.last, "last", "n", 100, "begin with the last `N` records; 0 for all there are")
	flags.StringVar(&l.since, "since", "", "only what began since then: a `duration` or an RFC 3339 time")
	flags.StringVar(&l.filter.Verdict, "verdict", "", "only those with this `verdict`: allow or deny")
	flags.StringVar(&l.filter.Direction, "direction", "", "only those in this `direction`: out or in")
	flags.StringVar(&l.filter.Protocol, "protocol", "", "only this `protocol`: tcp, udp, icmp, tls, http or dns")
	flags.StringVar(&l.filter.Name, "name", "", "only about this `name`, or *.name for those below it")
	flags.StringVar(&l.filter.Address, "address", "", "only to this address or `CIDR`")
	cmd.Flags().BoolVar(&c.json, "json", false, "print one JSON object a line, with the API's field names")
	return cmd
}

// maxLast is as many records as the server shows at once.
const maxLast = 1000

// prepare makes the filter of the flags.
func (l *flowLog) prepare() (err error) {
	switch {
	case l.last < 0 || l.last > maxLast:
		return fmt.Errorf("--last: %d is not between 0 and %d", l.last, maxLast)
	case l.last == 0:
		l.filter.Limit = maxLast
	default:
		l.filter.Limit, l.filter.Latest = l.last, true
	}
	if l.since != "" {
		l.filter.Since, err = parseSince(l.since)
	}
	return err
}

// parseSince reads a time, or how long ago it was.
func parseSince(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since: %q is neither a duration such as 10m nor a time such as 2026-11-21T10:00:00Z", text)
	}
	return at, nil
}

// pages shows what there is.
func (l *flowLog) pages(ctx context.Context, server *client.Client, id string) error {
	for {
		page, err := server.Flows(ctx, id, l.filter)
		if err != nil {
			return err
		}
		l.lost(page.Lost)
		for _, flow := range page.Flows {
			if err := l.show(flow); err != nil {
				return err
			}
		}
		if l.filter.Latest || len(page.Flows) < l.filter.Limit {
			return nil
		}
		l.filter.Cursor = page.Next
	}
}

// stream shows records as they come.
func (l *flowLog) stream(ctx context.Context, server *client.Client, id string) error {
	for event, err := range server.FollowFlows(ctx, id, l.filter) {
		if err != nil {
			return err
		}
		l.lost(event.Lost)
		if event.Lost > 0 {
			continue
		}
		if err := l.show(event.Flow); err != nil {
			return err
		}
	}
	return nil
}

func (l *flowLog) lost(n uint64) {
	if n > 0 {
		fmt.Fprintf(l.stderr, "moat: at least %d records are missing here: newer ones took their place\n", n)
	}
}

// columns are wide enough for what is usual, because a stream cannot know what
// is still to come.
const columns = "%-20s  %-7s  %-3s  %-8s  %-40s  %9s  %9s  %8s  %s\n"

func (l *flowLog) header() {
	if !l.json {
		fmt.Fprintf(l.stdout, columns, "TIME", "VERDICT", "DIR", "PROTOCOL", "DESTINATION", "UP", "DOWN", "TOOK", "WHY")
	}
}

func (l *flowLog) show(f api.FlowRecord) error {
	if l.json {
		raw, err := json.Marshal(f)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(l.stdout, "%s\n", raw)
		return err
	}
	took := time.Duration(f.DurationMs * float64(time.Millisecond)).Round(time.Millisecond)
	_, err := fmt.Fprintf(l.stdout, columns, stamp(f.Time), f.Verdict, f.Direction, f.Protocol, printable(destination(f)),
		size(f.BytesUp), size(f.BytesDown), took, printable(first(f.Reason, f.Rule, "-")+setsHeaders(f.Injected)))
	return err
}

// destination says where a flow went, in the words of its protocol.
func destination(f api.FlowRecord) string {
	where := first(f.Name, f.Address, "-")
	switch {
	case f.Direction == "in": // where to is always the sandbox
		return fmt.Sprintf("%s :%d%s", f.Method, f.Port, f.Path)
	case f.Protocol == "dns":
		return strings.TrimSpace(where + " " + f.Method)
	case f.Method != "":
		return f.Method + " " + where + f.Path
	case f.Port != 0:
		return net.JoinHostPort(where, strconv.Itoa(int(f.Port)))
	}
	return where
}

// size writes a number of bytes for people.
func size(n uint64) string {
	switch {
	case n < 10_000:
		return strconv.FormatUint(n, 10) + " B"
	case n < 10_000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
