package namespaces

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
// with the same number: it goes through a pidfd, and what is written down for
// the next server names the start time too.
type process struct {
	PID int `json:"pid"`
	// Start is when the process started, in clock ticks since the machine's boot.
	Start uint64 `json:"start"`

	fd     *os.File // pidfd, registered with Go's poller
	closed atomic.Bool
}

// openProcess takes hold of a process. start is when it started, 0 if any
// process with this number is meant. A process that has ended is
// os.ErrProcessDone.
func openProcess(pid int, start uint64) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{PID: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	// Read after the pidfd was opened: if the process is still the same it is
	// the one that the pidfd holds.
	p.Start, err = startTime(pid)
	if err == nil && start != 0 && p.Start != start {
		err = os.ErrProcessDone
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// close lets go of the process, which may go on running, and ends wait.
func (p *process) close() {
	p.closed.Store(true)
	_ = p.fd.Close() // nothing to flush
}

// kill ends the process at once. One that has ended or was let go of is no
// error.
func (p *process) kill() error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if errors.Is(sent, unix.ESRCH) || p.closed.Load() {
		return nil
	}
	if err = errors.Join(err, sent); err != nil {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}

// wait blocks until the process has ended, or until close, when it returns
// os.ErrClosed. There is one waiter at most.
func (p *process) wait() error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	err = conn.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return err == nil && n > 0
	})
	if p.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// startTime reads when a process started, in clock ticks since boot. One that
// has ended and that its parent, not this program, has yet to notice is
// os.ErrProcessDone.
func startTime(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	if state := string(fields[0]); state == "Z" || state == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// statFields returns the fields of /proc/PID/stat from the third, the state,
// on: the second is the process's name and may contain anything.
func statFields(pid int) ([][]byte, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 22 {
		return nil, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	return fields, nil
}

// await returns when done is closed, or with ctx.
func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// clockTick is the unit of CPU time in /proc: USER_HZ is 100 wherever Go runs.
const clockTick = 10 * time.Millisecond
