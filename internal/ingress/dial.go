package ingress

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

const (
	// patience is how long refused connections are tried again: a server that
	// was just started needs a moment to listen.
	patience = 3 * time.Second
	// Pauses between the tries grow from the first to the longest.
	firstPause   = 20 * time.Millisecond
	longestPause = 400 * time.Millisecond
	// dialTimeout bounds one try when nothing answers at all.
	dialTimeout = 10 * time.Second
)

// dialError marks what went wrong before any byte was sent.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// dialFunc makes one attempt at a connection.
type dialFunc func(context.Context) (net.Conn, error)

// dialPatiently calls dial until it succeeds, fails otherwise than by a
// refusal, or has been refused for as long as patience goes. When ctx ends it
// returns the cause at once.
func dialPatiently(ctx context.Context, dial dialFunc) (net.Conn, error) {
	deadline := time.Now().Add(patience)
	for pause := firstPause; ; pause = min(pause*3/2, longestPause) {
		conn, err := dialOnce(ctx, dial)
		if err == nil {
			return conn, nil
		}
		left := time.Until(deadline)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !errors.Is(err, syscall.ECONNREFUSED), left <= 0:
			return nil, dialError{err}
		}
		select {
		case <-time.After(min(pause, left)):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func dialOnce(ctx context.Context, dial dialFunc) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return dial(ctx)
}
