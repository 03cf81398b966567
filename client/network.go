package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/moat-sandbox/moat/api"
)

// Receipt confirms a change of a sandbox's network: it is in force.
type Receipt struct {
	// Generation numbers what is in force now.
	Generation uint64
	// FlowsCut is how many live flows ended because they are denied now.
	FlowsCut int
}

func readReceipt(h http.Header) (r Receipt, err error) {
	if r.Generation, err = strconv.ParseUint(h.Get(api.HeaderNetworkGeneration), 10, 64); err == nil {
		r.FlowsCut, err = strconv.Atoi(h.Get(api.HeaderFlowsCut))
	}
	if err != nil {
		return Receipt{}, fmt.Errorf("the answer has no receipt: %w", err)
	}
	return r, nil
}

// Network says what a sandbox may reach now.
func (c *Client) Network(ctx context.Context, id string) (api.NetworkState, error) {
	var state api.NetworkState
	_, err := c.call(ctx, http.MethodGet, sandboxPath(id)+"/network", nil, nil, &state)
	return state, wrap("get network", err)
}

// NetworkOptions are conditions of SetNetwork. The zero value has none.
type NetworkOptions struct {
	// IfGeneration is the number that the network must still have, or else the
	// call fails with status 412; 0 is any.
	IfGeneration uint64
	// KeepGrants leaves temporary grants alone; otherwise they end.
	KeepGrants bool
}

// SetNetwork replaces a sandbox's network document: what update leaves out is
// cleared, and temporary grants end. When it returns nil the new document is in
// force.
func (c *Client) SetNetwork(ctx context.Context, id string, update api.NetworkUpdate) error {
	_, err := c.call(ctx, http.MethodPut, sandboxPath(id)+"/network", nil, update, nil)
	return wrap("set network", err)
}

// SetNetworkIf is SetNetwork with conditions.
func (c *Client) SetNetworkIf(ctx context.Context, id string, update api.NetworkUpdate, o NetworkOptions) (Receipt, error) {
	query := url.Values{}
	if o.KeepGrants {
		query.Set("grants", "keep")
	}
	req, err := c.request(ctx, http.MethodPut, sandboxPath(id)+"/network", query, update)
	if err != nil {
		return Receipt{}, wrap("set network", err)
	}
	if o.IfGeneration != 0 {
		req.Header.Set("If-Match", strconv.Quote(strconv.FormatUint(o.IfGeneration, 10)))
	}
	header, err := c.do(req, nil)
	if err != nil {
		return Receipt{}, wrap("set network", err)
	}
	receipt, err := readReceipt(header)
	return receipt, wrap("set network", err)
}

// EditNetwork changes entries of a sandbox's network document and returns what
// is in force then. The server reads and writes the document in one step:
// nothing that another does meanwhile is lost.
func (c *Client) EditNetwork(ctx context.Context, id string, edit api.NetworkEdit) (api.NetworkState, Receipt, error) {
	var state api.NetworkState
	header, err := c.call(ctx, http.MethodPatch, sandboxPath(id)+"/network", nil, edit, &state)
	if err != nil {
		return api.NetworkState{}, Receipt{}, wrap("edit network", err)
	}
	receipt, err := readReceipt(header)
	return state, receipt, wrap("edit network", err)
}

// Grant allows entries of allowOut for a while, rounded up to seconds.
func (c *Client) Grant(ctx context.Context, id string, allowOut []string, length time.Duration) (api.Grant, error) {
	var grant api.Grant
	spec := api.NewGrant{AllowOut: allowOut, Seconds: *seconds(length)}
	_, err := c.call(ctx, http.MethodPost, sandboxPath(id)+"/network/grants", nil, spec, &grant)
	return grant, wrap("grant", err)
}

// Grants lists the grants that are not over, oldest first.
func (c *Client) Grants(ctx context.Context, id string) ([]api.Grant, error) {
	var grants []api.Grant
	_, err := c.call(ctx, http.MethodGet, sandboxPath(id)+"/network/grants", nil, nil, &grants)
	return grants, wrap("list grants", err)
}

// Revoke ends a grant. When it returns nil, what only the grant allowed is cut.
func (c *Client) Revoke(ctx context.Context, id, grant string) (Receipt, error) {
	header, err := c.call(ctx, http.MethodDelete, sandboxPath(id)+"/network/grants/"+url.PathEscape(grant), nil, nil, nil)
	if err != nil {
		return Receipt{}, wrap("revoke grant", err)
	}
	receipt, err := readReceipt(header)
	return receipt, wrap("revoke grant", err)
}

// Explain says what becomes of a flow under the sandbox's policy, and under a
// candidate that could replace it, and why. Nothing is sent.
func (c *Client) Explain(ctx context.Context, id string, question api.Question) (api.Explanation, error) {
	var explanation api.Explanation
	_, err := c.call(ctx, http.MethodPost, sandboxPath(id)+"/network/explain", nil, question, &explanation)
	return explanation, wrap("explain", err)
}
