package control

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// showNetwork answers what a sandbox may reach now.
func showNetwork(c *call) error {
	record, err := c.sandbox()
	if err != nil {
		return err
	}
	return c.replyState(record)
}

// replyState answers with what is in force according to a record.
func (c *call) replyState(record store.Sandbox) error {
	now := time.Now()
	compiled, err := c.inForce(record, now)
	if err != nil {
		return err
	}
	document := record.Policy(now)
	answer := api.NetworkState{
		Generation:          record.Generation,
		Network:             network(record),
		AllowInternetAccess: record.InternetAccess,
		Effective: api.EffectiveNetwork{
			AllowOut: append([]string{}, document.AllowOut...), // an empty list is [], not null
			DenyOut:  append([]string{}, document.DenyOut...),
			Default:  document.Default.String(),
		},
		Grants:   []api.Grant{},
		Warnings: []api.NetworkWarning{},
	}
	for _, g := range sandbox.ActiveGrants(record.Grants, now) {
		answer.Grants = append(answer.Grants, grantView(g))
	}
	for _, w := range compiled.Warnings() {
		answer.Warnings = append(answer.Warnings, api.NetworkWarning{Field: w.Field, Entry: w.Entry, Text: w.Text})
	}
	c.showGeneration(record.Generation)
	return c.reply(http.StatusOK, answer)
}

// inForce is the policy that follows from a record. That it cannot be compiled
// is nobody's mistake but ours.
func (c *call) inForce(record store.Sandbox, now time.Time) (*policy.Policy, error) {
	compiled, err := c.Compile(record.Policy(now))
	if err != nil {
		return nil, fmt.Errorf("stored network policy: %v", err) // not a client's wrong entry
	}
	return compiled, nil
}

// showGeneration puts the number of the network into the answer, also in the
// form in which a client gives it back with If-Match.
func (c *call) showGeneration(n uint64) {
	number := strconv.FormatUint(n, 10)
	c.w.Header().Set(api.HeaderNetworkGeneration, number)
	c.w.Header().Set("ETag", `"`+number+`"`)
}

// showReceipt puts into the answer what a change did.
func (c *call) showReceipt(r sandbox.Receipt) {
	c.showGeneration(r.Generation)
	c.w.Header().Set(api.HeaderFlowsCut, strconv.Itoa(r.Cut))
}

// ifMatch reads the generation that a change is meant for; 0 is any.
func (c *call) ifMatch() (uint64, error) {
	values := c.r.Header.Values("If-Match")
	if len(values) == 0 || slices.Equal(values, []string{"*"}) {
		return 0, nil
	}
	digits, opened := strings.CutPrefix(values[0], `"`)
	digits, closed := strings.CutSuffix(digits, `"`)
	n, err := strconv.ParseUint(digits, 10, 64)
	if len(values) > 1 || opened != closed || err != nil || n == 0 {
		return 0, badRequest("If-Match must be the ETag of the network, such as \"7\", got %s", clip(strings.Join(values, ", ")))
	}
	return n, nil
}
