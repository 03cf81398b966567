package control

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
)

// What a link may be good for, in seconds.
const (
	defaultLinkLife = 15 * 60
	maxLinkLife     = 7 * 24 * 60 * 60
)

// createLink makes a URL that opens a private port to a browser. Nothing is
// kept of it: it proves itself, until it expires or the traffic token changes.
func createLink(c *call) error {
	var wanted struct {
		api.NewLink
		Rest map[string]jsontext.Value `json:",embed"`
	}
	if err := c.sandboxBody(&wanted, &wanted.Rest); err != nil {
		return err
	}
	port, err := appPort("port", wanted.Port)
	if err != nil {
		return err
	}
	life, err := linkLife(wanted.Seconds)
	if err != nil {
		return err
	}
	record, err := c.sandbox()
	if err != nil {
		return err
	}
	switch {
	case c.Domain == "":
		// What stands in the way is how the server was set up, so it is a conflict as
		// below; 501 is for what no server of ours can do yet.
		return &fault{status: http.StatusConflict, message: "This server has no domain, and a link needs a host of its own"}
	case record.Ingress.PublicPort(port):
		return &fault{status: http.StatusConflict, message: fmt.Sprintf("Port %d of sandbox %q is open to everybody: it needs no link", port, c.id)}
	}
	query, expires, err := c.Engine.Link(c.id, port, life)
	if err != nil {
		return err
	}
	u := url.URL{Scheme: c.Scheme, Host: strconv.Itoa(int(port)) + "-" + c.id + "." + c.Domain, Path: "/", RawQuery: query}
	return c.reply(http.StatusCreated, api.Link{URL: u.String(), ExpiresAt: expires.UTC()})
}

func linkLife(seconds *int64) (time.Duration, error) {
	switch {
	case seconds == nil:
		return defaultLinkLife * time.Second, nil
	case *seconds < 1 || *seconds > maxLinkLife:
		return 0, badRequest("seconds must be from 1 to %d, got %d", maxLinkLife, *seconds)
	}
	return time.Duration(*seconds) * time.Second, nil
}
