package control

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// Flows is the audit log, as the API needs it.
type Flows interface {
	Query(audit.Filter) audit.Page
	Follow(audit.Filter) *audit.Follower
	// Team returns whose a sandbox was that has ended.
	Team(sandbox string) (team string, known bool)
}

// listFlows answers what a sandbox's network did, also for a while after the
// sandbox has ended.
func listFlows(c *call) error {
	if err := c.sandboxID(); err != nil {
		return err
	}
	q, err := c.query()
	if err != nil {
		return err
	}
	filter, follow, err := q.flows()
	if err != nil {
		return err
	}
	if err := c.mayReadFlows(); err != nil {
		return err
	}
	filter.Sandbox = c.id
	if follow {
		return c.followFlows(filter)
	}
	page := c.Flows.Query(filter)
	answer := api.FlowPage{Flows: make([]api.FlowRecord, 0, len(page.Records)), Next: page.Next, Lost: page.Lost}
	for _, r := range page.Records {
		answer.Flows = append(answer.Flows, flowRecord(r))
	}
	if filter.Latest { // who asks for the end does not miss the beginning
		answer.Lost = 0
	}
	return c.reply(http.StatusOK, answer)
}

// mayReadFlows finds out whether the sandbox is, or was, the caller's.
func (c *call) mayReadFlows() error {
	record, err := c.Store.Sandbox(c.r.Context(), c.id)
	if err == nil && record.Team == c.team {
		return nil
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if team, known := c.Flows.Team(c.id); err != nil && known && team == c.team {
		return nil
	}
	return sandbox.ErrNotFound
}

var flowParameters = []string{
	"cursor", "limit", "latest", "follow", "verdict", "direction", "protocol", "name", "address", "since",
}

// flows reads the filter of a log. An unknown parameter is refused: a filter
// that is overlooked looks like an answer.
func (q query) flows() (f audit.Filter, follow bool, err error) {
	for name := range q {
		if !slices.Contains(flowParameters, name) {
			return f, false, badRequest("Query parameter %s is not known here", clip(name))
		}
	}
	steps := []func() error{
		func() (err error) { f.Since, err = q.cursor(); return err },
		func() (err error) { f.Limit, err = q.number("limit", audit.DefaultLimit, audit.MaxLimit); return err },
		func() (err error) { f.Latest, err = q.flag("latest"); return err },
		func() (err error) { follow, err = q.flag("follow"); return err },
		func() (err error) { f.Verdict, err = q.verdict(); return err },
		func() (err error) { f.Direction, err = q.direction(); return err },
		func() (err error) { f.Protocol, err = q.protocol(); return err },
		func() (err error) { f.Name, err = q.name(); return err },
		func() (err error) { f.Address, err = q.address(); return err },
		func() (err error) { f.From, err = q.instant("since"); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return f, false, err
		}
	}
	return f, follow, nil
}

func (q query) cursor() (uint64, error) { return parseFlowCursor("cursor", q.get("cursor")) }

func parseFlowCursor(what, text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	cursor, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, badRequest("%s must be the cursor of a record, got %q", what, clip(text))
	}
	return cursor, nil
}

func (q query) verdict() (*policy.Verdict, error) {
	text := q.get("verdict")
	if text == "" {
		return nil, nil
	}
	verdict := new(policy.Verdict)
	if verdict.UnmarshalText([]byte(text)) != nil {
		return nil, badRequest("verdict must be allow or deny, got %q", clip(text))
	}
	return verdict, nil
}

func (q query) direction() (*audit.Direction, error) {
	text := q.get("direction")
	for _, d := range []audit.Direction{audit.Out, audit.In} {
		if text == d.String() {
			return &d, nil
		}
	}
	if text == "" {
		return nil, nil
	}
	return nil, badRequest("direction must be out or in, got %q", clip(text))
}

func (q query) protocol() (audit.Protocol, error) {
	p := audit.Protocol(q.get("protocol"))
	all := []audit.Protocol{audit.TCP, audit.UDP, audit.ICMP, audit.TLS, audit.HTTP, audit.DNS}
	if p != "" && !slices.Contains(all, p) {
		return "", badRequest("protocol must be one of tcp, udp, icmp, tls, http and dns, got %q", clip(string(p)))
	}
	return p, nil
}

// name is a name in the form that records have, or a wildcard over names.
func (q query) name() (string, error) {
	text := q.get("name")
	if text == "" || text == "*" {
		return text, nil
	}
	entry, kind := policy.Canonical(text)
	if kind != policy.EntryName {
		return "", badRequest("name must be a domain name, *.name or *, got %q", clip(text))
	}
	return entry, nil
}

// address is a prefix; the zero Prefix where none is given.
func (q query) address() (netip.Prefix, error) {
	text := q.get("address")
	if text == "" {
		return netip.Prefix{}, nil
	}
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, badRequest("address must be an address or a CIDR, got %q", clip(text))
	}
	return prefix.Masked(), nil
}

func flowRecord(r audit.Record) api.FlowRecord {
	shownRecord := api.FlowRecord{
		Cursor: r.Cursor, Time: shown(r.Time), Decision: r.ID.String(),
		Direction: r.Direction.String(), Protocol: string(r.Protocol), Port: r.Dst.Port(), Name: r.Name,
		Verdict: r.Verdict.String(), Rule: r.Rule, Entry: r.Entry, Reason: r.Reason, Generation: r.Generation,
		BytesUp: r.BytesUp, BytesDown: r.BytesDown, DurationMs: float64(r.Duration/time.Microsecond) / 1000,
		Method: r.Method, Path: r.Path, Status: r.Status,
		Intercepted: r.Intercepted, Matched: r.Matched, Injected: r.Injected,
	}
	if addr := r.Dst.Addr(); addr.IsValid() {
		shownRecord.Address = addr.String()
	}
	return shownRecord
}
