package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/moat-sandbox/moat/client"
)

func TestCommandsEndBecomesOurs(t *testing.T) {
	for _, c := range []struct {
		exit client.Exit
		err  error
		want int
	}{
		{exit: client.Exit{Code: 0, Status: "exit status 0"}, want: 0},
		{exit: client.Exit{Code: 124, Status: "exit status 124"}, want: 124},
		{exit: client.Exit{Code: -1, Status: "signal: killed"}, want: 137},
		{exit: client.Exit{Code: -1, Status: "signal: segmentation fault (core dumped)"}, want: 139},
		{exit: client.Exit{Code: -1, Status: "signal: signal 34"}, want: 128},
		{exit: client.Exit{Code: -1, Status: ""}, want: 128},
		{err: fmt.Errorf("run command: %w", context.DeadlineExceeded), want: 124},
		{err: fmt.Errorf("run command: %w", context.Canceled), want: 130},
		{err: fmt.Errorf("run command: %w", syscall.EPIPE), want: 141},
		{err: &client.Error{Status: 404, Message: "gone"}, want: 125},
		{err: errors.New("anything"), want: 125},
	} {
		got := exitOK
		if err := result(c.exit, c.err); err != nil {
			got = exitCode((&cli{}).execCommand(), err)
		}
		if got != c.want {
			t.Errorf("%+v, %v: got %d, want %d", c.exit, c.err, got, c.want)
		}
	}
}
