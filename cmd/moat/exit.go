package main

import (
	"errors"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/client"
)

// Exit codes, as docs/cli.md lists them.
const (
	exitOK           = 0
	exitError        = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitUnauthorised = 4
	// exec passes the command's own code on, so its troubles have others.
	exitTimeout   = 124
	exitExec      = 125 // moat itself failed
	exitSignal    = 128 // plus the signal's number
	exitInterrupt = exitSignal + 2
	exitPipe      = exitSignal + 13
)

// usageError is a mistake in the command line or in the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitStatus ends the program with a code of its own; without a message it says
// nothing.
type exitStatus struct {
	code    int
	message string
}

func (e exitStatus) Error() string { return e.message }

func exitCode(cmd *cobra.Command, err error) int {
	var status exitStatus
	var usage usageError
	var refused *client.Error
	switch {
	case errors.As(err, &status):
		return status.code
	case cmd.Name() == execName:
		return exitExec
	case errors.As(err, &usage):
		return exitUsage
	case !errors.As(err, &refused):
		return exitError
	}
	switch refused.Status {
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitUnauthorised
	}
	return exitError
}
