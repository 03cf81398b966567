package files

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/moat-sandbox/moat/internal/guest/account"
	"github.com/moat-sandbox/moat/internal/guest/session"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// Contents serves /files: GET reads a file, POST writes files. It checks the
// caller's token or signature itself, because signed URLs carry no header.
type Contents struct {
	sessions *session.Store
	log      *slog.Logger
}

// NewContents returns the handler for the users of the current session.
func NewContents(sessions *session.Store, log *slog.Logger) *Contents {
	return &Contents{sessions: sessions, log: log}
}

// refusal is an error whose text and status go to the caller.
type refusal struct {
	status  int
	message string
}

func (r *refusal) Error() string { return r.message }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// ServeHTTP implements http.Handler.
func (c *Contents) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var err error
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		err = c.download(w, r)
	case http.MethodPost:
		err = c.upload(w, r)
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		err = refuse(http.StatusMethodNotAllowed, "method %s is not allowed on /files", r.Method)
	}
	if err != nil {
		answer(w, err)
	}
}

// answer reports an error: a refusal as it is, a file error by its kind.
func answer(w http.ResponseWriter, err error) {
	var r *refusal
	if errors.As(err, &r) {
		wire.WriteError(w, r.status, r.message)
		return
	}
	wire.WriteError(w, status(err), err.Error())
}

func status(err error) int {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return http.StatusForbidden
	case wire.NoSpace(err):
		return http.StatusInsufficientStorage
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ETXTBSY):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// request is an admitted request for files.
type request struct {
	query    url.Values
	settings *session.Settings
	user     account.User
}

// admit checks who asks, for whom, and that the query is well formed.
func (c *Contents) admit(r *http.Request, op session.Operation) (*request, error) {
	settings := c.sessions.Get()
	if settings == nil {
		return nil, refuse(http.StatusServiceUnavailable, "the sandbox is not initialised yet")
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the query is malformed")
	}
	for name, values := range query {
		if len(values) > 1 {
			return nil, refuse(http.StatusBadRequest, "query parameter %q is given %d times", name, len(values))
		}
	}
	if err := settings.Verify(r.Header.Get(session.TokenHeader), query, op, time.Now()); err != nil {
		return nil, refuse(http.StatusUnauthorized, "%s", err)
	}
	user, err := settings.User(query.Get("username"))
	if errors.Is(err, account.ErrUnknown) {
		return nil, refuse(http.StatusUnauthorized, "error looking up user '%s': %s", query.Get("username"), err)
	}
	if err != nil {
		return nil, err
	}
	return &request{query: query, settings: settings, user: user}, nil
}

// resolve makes a path given by the caller absolute.
func (r *request) resolve(path string) (string, error) {
	if strings.ContainsRune(path, 0) {
		return "", refuse(http.StatusBadRequest, "path %q contains a NUL byte", path)
	}
	return r.settings.Path(r.user, path), nil
}
