package control

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

const (
	// maxGrant bounds how long a grant holds. What is to hold for longer belongs
	// into the document.
	maxGrant = 24 * time.Hour
	// maxGrantEntries bounds the entries of one grant.
	maxGrantEntries = 100
)

// grantBody is api.NewGrant with everything else a client may send.
type grantBody struct {
	api.NewGrant
	Rest map[string]jsontext.Value `json:",embed"`
}

// addGrant allows entries for a while.
func addGrant(c *call) error {
	var body grantBody
	if err := c.sandboxBody(&body, &body.Rest); err != nil {
		return err
	}
	switch n := len(body.AllowOut); {
	case n == 0:
		return badRequest("allowOut is required: a grant allows something")
	case n > maxGrantEntries:
		return badRequest("allowOut has %d entries, at most %d are accepted in a grant", n, maxGrantEntries)
	case body.Seconds < 1 || body.Seconds > int64(maxGrant/time.Second):
		return badRequest("seconds must be from 1 to %d, got %d", maxGrant/time.Second, body.Seconds)
	}
	if _, err := c.sandbox(); err != nil {
		return err
	}
	ctx, cancel := c.lasting()
	defer cancel()
	until := time.Now().Add(time.Duration(body.Seconds) * time.Second)
	grant, receipt, err := c.Engine.Grant(ctx, c.id, body.AllowOut, until)
	if err != nil {
		return err
	}
	c.showReceipt(receipt)
	return c.reply(http.StatusCreated, grantView(grant))
}

func listGrants(c *call) error {
	record, err := c.sandbox()
	if err != nil {
		return err
	}
	answer := []api.Grant{}
	for _, g := range sandbox.ActiveGrants(record.Grants, time.Now()) {
		answer = append(answer, grantView(g))
	}
	return c.reply(http.StatusOK, answer)
}

// revokeGrant ends a grant before its time.
func revokeGrant(c *call) error {
	if _, err := c.sandbox(); err != nil {
		return err
	}
	ctx, cancel := c.lasting()
	defer cancel()
	receipt, err := c.Engine.Revoke(ctx, c.id, c.r.PathValue("grantID"))
	if err != nil {
		return err
	}
	c.showReceipt(receipt)
	return c.done()
}

func grantView(g sandbox.Grant) api.Grant {
	return api.Grant{ID: g.ID, AllowOut: g.AllowOut, CreatedAt: shown(g.CreatedAt), ExpiresAt: shown(g.ExpiresAt)}
}
