package app

import (
	"net/netip"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// visits writes what comes in by the public URLs into the audit log.
type visits struct{ log *audit.Log }

// Finished implements ingress.Observer.
func (v visits) Finished(r ingress.Record) {
	verdict := policy.Deny
	if r.Verdict == ingress.Allowed || r.Verdict == ingress.Answered {
		verdict = policy.Allow
	}
	reason := visitReasons[r.Reason]
	if r.Failure != "" {
		reason += "; it ended with " + r.Failure
	}
	v.log.Append(audit.Record{
		Time: r.Time, Duration: r.Duration, Sandbox: r.Sandbox,
		Direction: audit.In, Protocol: audit.HTTP, Dst: netip.AddrPortFrom(r.Client, r.Port),
		Verdict: verdict, Rule: string(r.Reason), Reason: reason,
		BytesUp: uint64(r.BytesIn), BytesDown: uint64(r.BytesOut),
		Method: r.Method, Path: r.Path, Status: r.Status,
	})
}

// visitReasons say in a sentence why a request passed or did not. A code that
// is not here speaks for itself.
var visitReasons = map[ingress.Reason]string{
	ingress.ByEverybody:     "the port is open to everybody",
	ingress.ByToken:         "the request has the traffic token",
	ingress.ByGuestToken:    "the request has the token of the sandbox's daemon",
	ingress.ByLink:          "the browser came by a link",
	ingress.LinkFollowed:    "a link was exchanged for a cookie",
	ingress.Preflight:       "a browser asked whether it may send the traffic token",
	ingress.SlashAdded:      "the path lacked its last slash",
	"traffic_token_missing": "the port is private and the request has no traffic token",
	"traffic_token_invalid": "the traffic token is wrong",
	"link_invalid":          "the link does not open this port",
	"link_expired":          "the link has expired",
	"cross_site":            "a page of another origin may not use a link's cookie",
	"too_many_connections":  "too many requests of the sandbox are open",
}
