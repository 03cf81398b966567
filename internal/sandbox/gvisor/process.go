package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// process is a hold on one process that cannot be mistaken for a later one
// with the same number: everything goes through a pidfd, and what is written
// down for the next server names the start time too.
type process struct {
	PID int `json:"pid"`
	// Start is when the process started, in clock ticks since the machine's boot.
	Start uint64 `json:"start"`

	fd     *os.File // pidfd, registered with the runtime's poller
	closed atomic.Bool
}

// openProcess takes hold of a process by the number and start time that were
// written down earlier. It returns os.ErrProcessDone when that process is gone.
func openProcess(pid int, start uint64) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p, err := newProcess(pid, fd)
	if err == nil && p.Start != start {
		p.close()
		return nil, os.ErrProcessDone
	}
	return p, err
}

// newProcess takes over pidfd, which must be non-blocking.
func newProcess(pid, pidfd int) (*process, error) {
	p := &process{PID: pid, fd: os.NewFile(uintptr(pidfd), "pidfd")}
	var err error
	// Read after the pidfd was opened: if the process is still the same it is
	// the one that the pidfd holds.
	if p.Start, err = startTime(pid); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// close lets go of the process, which may go on running.
func (p *process) close() {
	p.closed.Store(true)
	_ = p.fd.Close() // nothing to flush
}

// kill ends the process at once. One that has ended or was let go of is no error.
func (p *process) kill() error {
	err := p.control(func(fd int) error {
		return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	})
	if errors.Is(err, unix.ESRCH) || p.closed.Load() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}

// wait blocks until the process has ended, ctx is done or p is closed
// (os.ErrClosed), and reaps it if it is a child of this process.
func (p *process) wait(ctx context.Context) error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var reapErr error
	err = conn.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		if err != nil || n == 0 {
			return false
		}
		// After a restart of the server the process is not our child (ECHILD).
		reapErr = unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED, nil)
		return true
	})
	switch {
	case p.closed.Load():
		err = os.ErrClosed
	case err != nil && ctx.Err() != nil:
		_ = p.fd.SetReadDeadline(time.Time{}) // for the next attempt
		err = context.Cause(ctx)
	case err == nil && !errors.Is(reapErr, unix.ECHILD):
		err = reapErr
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	return nil
}

// killAndWait ends the process and returns when it is gone, or with ctx. No
// other wait may be under way.
func (p *process) killAndWait(ctx context.Context) error {
	if err := p.kill(); err != nil {
		return err
	}
	return p.wait(ctx)
}

func (p *process) control(fn func(fd int) error) error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	if err := conn.Control(func(fd uintptr) { fnErr = fn(int(fd)) }); err != nil {
		return err
	}
	return fnErr
}

// startTime reads when a process started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// statFields returns the fields of /proc/PID/stat from the third, the state,
// on: the second is the process's name and may contain anything.
func statFields(pid int) ([][]byte, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil, os.ErrProcessDone
		}
		return nil, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 22 {
		return nil, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	return fields, nil
}
