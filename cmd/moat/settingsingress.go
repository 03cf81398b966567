package main

import (
	"strconv"

	"github.com/spf13/pflag"

	"github.com/moat-sandbox/moat/internal/app"
)

// declareIngress declares the settings about what comes in.
func (s *settings) declareIngress(add func(v pflag.Value, name, usage string), number func(to *int, name, preset, usage string, least int)) {
	limits, standard := &s.Ingress, app.DefaultIngress()
	number(&limits.Connections, "max-connections", strconv.Itoa(standard.Connections), "connections that clients may have open; one more is reset", 1)
	number(&limits.PerSandbox, "max-sandbox-requests", strconv.Itoa(standard.PerSandbox), "requests and WebSockets that one sandbox may have open", 1)
	number(&limits.Unknown, "max-unknown", strconv.Itoa(standard.Unknown), "requests a minute that one address may send for sandboxes that do not exist", 1)
	number(&limits.Header, "max-header", strconv.Itoa(standard.Header), "`bytes` that the headers of a request may have", app.MinHeader)
	add(newValue(&limits.HeaderTimeout, kindText, standard.HeaderTimeout.String(), parseLifetime), "header-timeout", "`duration` that the headers of a request may take to arrive")
	s.flags.BoolVar(&limits.RefusePreflight, "refuse-preflight", false, "do not answer preflights (CORS) for private ports: web pages of other origins cannot send the token then")
	add(newValue(&s.Metrics, kindText, "", parseListen), "metrics", "`address` where GET /metrics is served for Prometheus; anyway on the operator's socket")
}
