package process

import (
	"fmt"
	"math"
	"os"
	"strconv"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/account"
)

// openTerminal makes a pseudo-terminal for the user and returns its two sides.
// Ours never blocks a thread, so that reads end when it is closed and writes
// can have a deadline.
func openTerminal(u account.User, size unix.Winsize) (ours, theirs *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	ours = os.NewFile(uintptr(fd), "/dev/ptmx")
	theirs, err = openPeer(fd)
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size)
	}
	if err == nil {
		// As login does, so that the user's programs may reopen their terminal.
		err = theirs.Chown(int(u.UID), int(u.GID))
	}
	if err != nil {
		closeAll([]*os.File{ours, theirs})
		return nil, nil, fmt.Errorf("set up terminal: %w", err)
	}
	return ours, theirs, nil
}

func openPeer(fd int) (*os.File, error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	return os.OpenFile("/dev/pts/"+strconv.FormatUint(uint64(number), 10), unix.O_RDWR|unix.O_NOCTTY, 0)
}

// setSize changes the size of the terminal whose our side is f.
func setSize(f *os.File, size unix.Winsize) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &size)
	})
	if err != nil {
		return err
	}
	return failed
}

// terminalSize returns the size asked for, or the classic one. Errors are ready
// to be returned from a handler.
func terminalSize(p *pb.PTY) (unix.Winsize, error) {
	size := p.GetSize()
	if size == nil {
		return unix.Winsize{Col: 80, Row: 24}, nil
	}
	if size.GetCols() > math.MaxUint16 || size.GetRows() > math.MaxUint16 {
		return unix.Winsize{}, connect.NewError(connect.CodeInvalidArgument,
			fmt.Errorf("pty.size: %dx%d is more than %dx%d", size.GetCols(), size.GetRows(), math.MaxUint16, math.MaxUint16))
	}
	return unix.Winsize{Col: uint16(size.GetCols()), Row: uint16(size.GetRows())}, nil
}
