package dial

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/moat-sandbox/moat/internal/egress"
)

// Kind is what kept a connection from being made.
type Kind uint8

// The zero value is not used.
const (
	// Unresolved: the name has no address, or nobody could be asked.
	Unresolved Kind = iota + 1
	// Forbidden: no address that there is may be reached.
	Forbidden
	// Refused: the destination does not listen.
	Refused
	// Unreachable: no route leads there, or the node has no such network.
	Unreachable
	// TimedOut: nothing has answered.
	TimedOut
	// Canceled: who wanted the connection does not want it any more.
	Canceled
	// Proxy: the upstream proxy cannot be used, or does not connect.
	Proxy
	// Failed: anything else.
	Failed
)

// Error is returned by all dials. Its text is for the log: it may name servers
// of the node. Reason is for people.
type Error struct {
	// Target is the name or address, and port, that was to be reached.
	Target string
	// Addr is the address that the error is about; not valid if it is about none.
	Addr netip.AddrPort
	Kind Kind
	Err  error
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("dial %s: %v", e.Target, e.Err) }

// Unwrap returns the cause. If the kind is Forbidden there is an
// *egress.ForbiddenError in it.
func (e *Error) Unwrap() error { return e.Err }

// Reason says what happened in a sentence that sandboxes may read.
func (e *Error) Reason() string {
	where := e.Target
	if e.Addr.IsValid() && e.Addr.String() != e.Target {
		where = fmt.Sprintf("%s (%v)", e.Target, e.Addr.Addr())
	}
	switch e.Kind {
	case Unresolved:
		return fmt.Sprintf("%s does not resolve: %s", e.Target, lookupReason(e.Err))
	case Forbidden:
		var forbidden *egress.ForbiddenError
		if errors.As(e.Err, &forbidden) {
			return fmt.Sprintf("%s leads to an address that is not reachable: %v", e.Target, forbidden)
		}
		var denied *egress.NotPermittedError
		if errors.As(e.Err, &denied) {
			return denied.Error()
		}
	case Proxy:
		return fmt.Sprintf("%s cannot be connected to: the egress proxy %s", e.Target, proxyReason(e.Err))
	case Refused:
		return where + " refuses connections"
	case Unreachable:
		return where + " is not reachable from this node"
	case TimedOut:
		return where + " does not answer"
	case Canceled:
		return fmt.Sprintf("the connection to %s is not wanted any more", where)
	}
	return fmt.Sprintf("%s could not be connected to", where)
}

// lookupReason leaves out which servers were asked and what they said.
func lookupReason(err error) string {
	for _, known := range []error{egress.ErrInvalidName, egress.ErrNoSuchName, egress.ErrNoAddress} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return egress.ErrNoAnswer.Error()
}

// proxyFailed is the error of a dial by way of a proxy. That the proxy itself is
// never reachable stays known.
func proxyFailed(target string, err error) *Error {
	kind := Proxy
	if kindOf(err) == Canceled {
		kind = Canceled
	}
	return &Error{Target: target, Kind: kind, Err: fmt.Errorf("by way of the egress proxy: %w", err)}
}

// proxyReason leaves out where the proxy is: that is its owner's matter, not the
// sandbox's.
func proxyReason(err error) string {
	var reply socksReply
	var own *Error
	switch {
	case errors.As(err, &reply):
		return reply.Error()
	case errors.As(err, &own) && own.Kind == Unresolved:
		return "does not resolve"
	case errors.As(err, &own) && own.Kind == Forbidden:
		return "is at an address that is not reachable"
	case kindOf(err) == TimedOut:
		return "does not answer"
	}
	for _, known := range []error{errNotSOCKS, errNoMethod, errNoPassword, errPassword} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "cannot be used"
}

// attemptError is the failure of one attempt.
type attemptError struct {
	addr netip.AddrPort
	err  error
}

func (e *attemptError) Error() string { return e.err.Error() }
func (e *attemptError) Unwrap() error { return e.err }

// unresolved is the error of a dial that came to no address.
func unresolved(target string, err error) *Error {
	kind := kindOf(err)
	if kind != Forbidden && kind != Canceled {
		kind = Unresolved // a name server was refused, unreachable or silent
	}
	return &Error{Target: target, Kind: kind, Err: err}
}

// failed is the error of a dial whose attempts all failed.
func failed(target string, err error) *Error {
	e := &Error{Target: target, Kind: kindOf(err), Err: err}
	var attempt *attemptError
	if errors.As(err, &attempt) {
		e.Addr = attempt.addr
	}
	return e
}

func kindOf(err error) Kind {
	var forbidden *egress.ForbiddenError
	switch {
	case errors.As(err, &forbidden):
		return Forbidden
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return TimedOut
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL),
		errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return Unreachable
	}
	return Failed
}
