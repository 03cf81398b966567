package control

import (
	"context"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
)

// route is one operation. Its pattern is a method and a path as in
// api/openapi.yaml.
type route struct {
	pattern string
	handle  func(*call) error
	rule    rule
}

// rule says how a route is guarded.
type rule int

const (
	keyed rule = iota // needs an API key and ends within requestTimeout
	open              // needs no API key
	slow              // as keyed, but may take as long as the client waits
)

var publicRoutes = []route{
	{"GET /health", health, open},

	{"POST /sandboxes", createV1, keyed},
	{"POST /v2/sandboxes", createV2, keyed},
	{"GET /sandboxes", listV1, keyed},
	{"GET /v2/sandboxes", listV2, keyed},
	{"GET /sandboxes/metrics", metricsOfMany, keyed},
	{"GET /sandboxes/{sandboxID}", get, keyed},
	{"DELETE /sandboxes/{sandboxID}", kill, keyed},
	{"POST /sandboxes/{sandboxID}/connect", connectV1, keyed},
	{"POST /v2/sandboxes/{sandboxID}/connect", connectV2, keyed},
	{"POST /sandboxes/{sandboxID}/timeout", setTimeout, keyed},
	{"POST /sandboxes/{sandboxID}/refreshes", refresh, keyed},
	{"GET /sandboxes/{sandboxID}/network", showNetwork, keyed},
	{"PUT /sandboxes/{sandboxID}/network", updateNetwork, keyed},
	{"PATCH /sandboxes/{sandboxID}/network", editNetwork, keyed},
	{"GET /sandboxes/{sandboxID}/network/grants", listGrants, keyed},
	{"POST /sandboxes/{sandboxID}/network/grants", addGrant, keyed},
	{"DELETE /sandboxes/{sandboxID}/network/grants/{grantID}", revokeGrant, keyed},
	{"POST /sandboxes/{sandboxID}/network/explain", explainNetwork, keyed},
	{"GET /sandboxes/{sandboxID}/network/flows", listFlows, slow},
	{"POST /sandboxes/{sandboxID}/traffic-token", rotateTrafficToken, keyed},
	{"POST /sandboxes/{sandboxID}/links", createLink, keyed},
	{"GET /sandboxes/{sandboxID}/metrics", metricsOfOne, keyed},

	{"GET /secrets", listSecrets, keyed},
	{"PUT /secrets/{secret}", putSecret, keyed},
	{"DELETE /secrets/{secret}", deleteSecret, keyed},

	// E2B deletes snapshots here. There are none, and templates are the
	// operator's.
	{"DELETE /templates/{templateID}", deleteSnapshot, keyed},

	{"POST /sandboxes/{sandboxID}/pause", notYet("pausing"), keyed},
	{"POST /sandboxes/{sandboxID}/resume", notYet("resuming"), keyed},
	{"POST /sandboxes/{sandboxID}/snapshots", notYet("taking snapshots"), keyed},
	{"GET /snapshots", notYet("listing snapshots"), keyed},
	{"POST /sandboxes/{sandboxID}/fork", notYet("forking"), keyed},
	{"POST /sandboxes/{sandboxID}/rollback", notYet("going back to a snapshot"), keyed},
	{"GET /sandboxes/{sandboxID}/logs", notYet("reading logs"), keyed},
	{"GET /v2/sandboxes/{sandboxID}/logs", notYet("reading logs"), keyed},
}

var operatorRoutes = []route{
	{"GET /operator/keys", listKeys, keyed},
	{"POST /operator/keys", createKey, keyed},
	{"DELETE /operator/keys/{keyID}", deleteKey, keyed},
	{"GET /operator/templates", listTemplates, keyed},
	{"POST /operator/templates", addTemplate, slow},
	{"DELETE /operator/templates/{template}", removeTemplate, keyed},
}

// notYet answers for what E2B has and this server will have.
func notYet(what string) func(*call) error {
	return func(*call) error {
		return &fault{status: http.StatusNotImplemented, message: "This server does not support " + what + " yet."}
	}
}

// anyPath takes every request that no route takes.
const anyPath = "/"

// serve builds the handler for a set of routes.
func (a *API) serve(routes []route, authenticate func(*http.Request) (team string, err error)) http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) {
			if rt.rule != slow {
				ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
				defer cancel()
				r = r.WithContext(ctx)
			}
			c := &call{API: a, w: w, r: r}
			c.finish(func() (err error) {
				if rt.rule != open {
					if c.team, err = authenticate(r); err != nil {
						return err
					}
				}
				return rt.handle(c)
			})
		})
	}
	mux.HandleFunc(anyPath, func(w http.ResponseWriter, r *http.Request) {
		c := &call{API: a, w: w, r: r}
		c.finish(func() error { return unrouted(mux, r) })
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		allowAnyOrigin(w.Header())
		switch {
		case r.Method == http.MethodOptions:
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path != path.Clean(r.URL.Path):
			// The mux would redirect, and clients would repeat a POST as a GET.
			c := &call{API: a, w: w, r: r}
			c.finish(func() error { return unknownRoute(r) })
		default:
			mux.ServeHTTP(w, r)
		}
		a.Logger.Debug("api request", "method", r.Method, "route", r.Pattern, "took", time.Since(began))
	})
}

// unrouted says why no route took the request: its path or its method.
func unrouted(mux *http.ServeMux, r *http.Request) error {
	var allowed []string
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
		probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := mux.Handler(probe); pattern != anyPath {
			allowed = append(allowed, method)
		}
	}
	if allowed == nil {
		return unknownRoute(r)
	}
	return &fault{
		status:  http.StatusMethodNotAllowed,
		message: "Method " + clip(r.Method) + " is not allowed here.",
		header:  http.Header{"Allow": {strings.Join(append(allowed, "OPTIONS"), ", ")}},
	}
}

func unknownRoute(r *http.Request) error {
	return &fault{status: http.StatusNotFound, message: "No such route: " + clip(r.URL.Path)}
}

// allowAnyOrigin lets web pages of any origin use the API, as E2B does. That
// gives them nothing: a page's request counts by its API key alone, and no
// browser adds that by itself.
func allowAnyOrigin(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	// The star does not cover Authorization.
	h.Set("Access-Control-Allow-Headers", "*, Authorization, Content-Type, X-API-Key, X-Team-ID")
	h.Set("Access-Control-Expose-Headers", strings.Join([]string{
		api.HeaderNextToken, api.HeaderTotalRunning, api.HeaderNetworkGeneration, api.HeaderFlowsCut, "ETag",
		"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "Retry-After",
	}, ", "))
	h.Set("Access-Control-Max-Age", "86400")
}
