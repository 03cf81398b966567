package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"connectrpc.com/connect"
)

// Error is a refusal by the server, its gateway or a sandbox's daemon.
type Error struct {
	// Status is the HTTP status; for the daemon's calls the one that belongs to
	// their code.
	Status int
	// Code names the cause for programs: E2B's error_code, or the code of the
	// daemon's call such as "not_found". It may be empty.
	Code string
	// Message is for people.
	Message string
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// errorLimit bounds what is read of an error's body, in bytes.
const errorLimit = 64 << 10

// readError makes an Error of an answer that is none of the 2xx.
func readError(answer *http.Response) *Error {
	body, _ := io.ReadAll(io.LimitReader(answer.Body, errorLimit))
	if e := parseError(answer.StatusCode, body); e != nil {
		return e
	}
	return &Error{
		Status:  answer.StatusCode,
		Message: fmt.Sprintf("server answered %d %s", answer.StatusCode, http.StatusText(answer.StatusCode)),
	}
}

// parseError reads the error body that the API, the gateway and the daemon
// share. It returns nil for any other body: a call's own error, which has a
// word in place of the number, or another server's page.
func parseError(status int, body []byte) *Error {
	var wire struct {
		Code      int    `json:"code"`
		Message   string `json:"message"`
		ErrorCode string `json:"error_code"`
	}
	if json.Unmarshal(body, &wire) != nil || wire.Message == "" {
		return nil
	}
	return &Error{Status: status, Code: wire.ErrorCode, Message: wire.Message}
}

// callStatus gives the HTTP status of a daemon call's code, as the Connect
// protocol assigns them.
var callStatus = map[connect.Code]int{
	connect.CodeCanceled:           499,
	connect.CodeInvalidArgument:    http.StatusBadRequest,
	connect.CodeDeadlineExceeded:   http.StatusGatewayTimeout,
	connect.CodeNotFound:           http.StatusNotFound,
	connect.CodeAlreadyExists:      http.StatusConflict,
	connect.CodePermissionDenied:   http.StatusForbidden,
	connect.CodeResourceExhausted:  http.StatusTooManyRequests,
	connect.CodeFailedPrecondition: http.StatusBadRequest,
	connect.CodeAborted:            http.StatusConflict,
	connect.CodeOutOfRange:         http.StatusBadRequest,
	connect.CodeUnimplemented:      http.StatusNotImplemented,
	connect.CodeUnavailable:        http.StatusServiceUnavailable,
	connect.CodeUnauthenticated:    http.StatusUnauthorized,
}

// fromCall turns the error of a daemon call into an *Error where it is one. A
// context's error stays recognisable.
func fromCall(err error) error {
	var refused *Error
	var call *connect.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return refused
	case !errors.As(err, &call) || !connect.IsWireError(err):
		return err
	}
	status, ok := callStatus[call.Code()]
	if !ok {
		status = http.StatusInternalServerError
	}
	return &Error{Status: status, Code: call.Code().String(), Message: call.Message()}
}

// wrap puts the operation in front of an error.
func wrap(operation string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", operation, err)
}
