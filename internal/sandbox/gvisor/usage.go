package gvisor

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// clockTick is the unit of CPU time in /proc: USER_HZ is 100 wherever Go runs.
const clockTick = 10 * time.Millisecond

// Usage implements sandbox.Box.
func (b *box) Usage(context.Context) (sandbox.Usage, error) {
	select {
	case <-b.end.over:
		return sandbox.Usage{}, fmt.Errorf("read usage of box %s: %w", b.id, sandbox.ErrGone)
	default:
	}
	var u sandbox.Usage
	var err error
	if b.group != nil {
		u, err = b.group.usage()
	} else {
		u, err = processUsage(b.sentry.PID)
	}
	if err != nil {
		return sandbox.Usage{}, fmt.Errorf("read usage of box %s: %w", b.id, err)
	}
	return u, nil
}

// processUsage adds up a sentry and its descendants, which run the code inside.
// They share the memory of the box, so only the sentry's counts.
func processUsage(pid int) (sandbox.Usage, error) {
	fields, err := statFields(pid)
	if err != nil {
		return sandbox.Usage{}, err
	}
	var u sandbox.Usage
	pages, err := strconv.ParseInt(string(fields[21]), 10, 64)
	if err != nil {
		return sandbox.Usage{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	u.MemoryBytes = pages * int64(os.Getpagesize())
	for pending := []int{pid}; len(pending) > 0; pending = pending[1:] {
		fields, err := statFields(pending[0])
		if err != nil {
			continue // ended since it was listed
		}
		for _, f := range fields[11:13] { // user and system time
			ticks, err := strconv.ParseInt(string(f), 10, 64)
			if err != nil {
				return sandbox.Usage{}, fmt.Errorf("read /proc/%d/stat: %w", pending[0], err)
			}
			u.CPUTime += time.Duration(ticks) * clockTick
		}
		pending = append(pending, children(pending[0])...)
	}
	return u, nil
}

// children lists the processes that the threads of pid have started.
func children(pid int) []int {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil // gone
	}
	var all []int
	for _, t := range tasks {
		list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(list)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}
