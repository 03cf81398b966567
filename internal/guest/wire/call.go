package wire

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/internal/guest/account"
	"github.com/moat-sandbox/moat/internal/guest/session"
)

const (
	keepaliveHeader  = "Keepalive-Ping-Interval"
	defaultKeepalive = 90 * time.Second
	maxKeepalive     = 24 * time.Hour
)

// errNotReady is the answer to a call that came before the first /init.
var errNotReady = errors.New("the sandbox is not initialised yet")

// Caller is for whom one RPC is done.
type Caller struct {
	User     account.User
	Settings *session.Settings
}

// From finds out who calls: the user named in the Authorization header, or the
// session's default user. Errors are ready to be returned from a handler.
func From(ctx context.Context, sessions *session.Store) (Caller, error) {
	settings := sessions.Get()
	if settings == nil {
		return Caller{}, connect.NewError(connect.CodeUnavailable, errNotReady)
	}
	name, err := basicUser(header(ctx).Get("Authorization"))
	if err != nil {
		return Caller{}, connect.NewError(connect.CodeUnauthenticated, err)
	}
	u, err := settings.User(name)
	if errors.Is(err, account.ErrUnknown) {
		return Caller{}, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("invalid username: '%s'", name))
	}
	if err != nil {
		return Caller{}, connect.NewError(connect.CodeInternal, err)
	}
	return Caller{User: u, Settings: settings}, nil
}

// Keepalive returns after how much silence a stream sends a keepalive. Errors
// are ready to be returned from a handler.
func Keepalive(ctx context.Context) (time.Duration, error) {
	raw := header(ctx).Get(keepaliveHeader)
	if raw == "" {
		return defaultKeepalive, nil
	}
	seconds, err := strconv.ParseInt(raw, 10, 32)
	if err != nil || seconds <= 0 || time.Duration(seconds)*time.Second > maxKeepalive {
		return 0, connect.NewError(connect.CodeInvalidArgument,
			fmt.Errorf("%s: %q is not a number of seconds from 1 to %d", keepaliveHeader, raw, int(maxKeepalive/time.Second)))
	}
	return time.Duration(seconds) * time.Second, nil
}

func header(ctx context.Context) http.Header {
	if info, ok := connect.CallInfoForHandlerContext(ctx); ok {
		return info.RequestHeader()
	}
	return nil
}

// basicUser returns the user name of a Basic authorization; its password means
// nothing, because the access token is what authenticates. No header, no name.
func basicUser(authorization string) (string, error) {
	if authorization == "" {
		return "", nil
	}
	scheme, encoded, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", fmt.Errorf("authorization: scheme %q is not Basic", scheme)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return "", errors.New("authorization: the credentials are not base64")
	}
	name, _, _ := strings.Cut(string(raw), ":")
	return name, nil
}
