package guest

import (
	"fmt"
	"net/http"

	"github.com/moat-sandbox/moat/internal/guest/session"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// unauthorized is a text of the protocol.
const unauthorized = "unauthorized access, please provide a valid access token or method signing if supported"

// authorized lets a request through that has the access token, before anything
// of it is read. Some paths have rules of their own: /health tells nothing,
// /init and /files check callers themselves.
func (s *Server) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /health", "POST /init", "GET /files", "POST /files":
			next.ServeHTTP(w, r)
			return
		}
		settings := s.sessions.Get()
		if settings == nil {
			wire.WriteError(w, http.StatusServiceUnavailable, "the sandbox is not initialised yet")
			return
		}
		if !settings.Authorized(r.Header.Get(session.TokenHeader)) {
			wire.WriteError(w, http.StatusUnauthorized, unauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// anyOrigin lets web pages call the daemon: what guards it is the token, which
// browsers do not send by themselves.
func anyOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if r.Header.Get("Origin") == "" {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Expose-Headers", "*, Location, Cache-Control, X-Content-Type-Options, "+
			"Connect-Content-Encoding, Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin")
		asked := r.Header.Get("Access-Control-Request-Headers")
		if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Methods", "HEAD, GET, POST, PUT, PATCH, DELETE")
		if asked != "" {
			h.Set("Access-Control-Allow-Headers", asked)
		}
		h.Set("Access-Control-Max-Age", "7200")
		w.WriteHeader(http.StatusNoContent)
	})
}

// unlimited drops a timeout of zero, which clients send for "none" but Connect
// takes for "over at once".
func unlimited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Connect-Timeout-Ms") == "0" {
			r.Header.Del("Connect-Timeout-Ms")
		}
		next.ServeHTTP(w, r)
	})
}

func health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

// envs tells the environment that every command gets.
func (s *Server) envs(w http.ResponseWriter, _ *http.Request) {
	wire.WriteJSON(w, http.StatusOK, s.sessions.Get().Env())
}

func unknown(w http.ResponseWriter, r *http.Request) {
	wire.WriteError(w, http.StatusNotFound, fmt.Sprintf("%s %s is unknown here", r.Method, r.URL.Path))
}
