package process

import (
	"fmt"
	"os"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/account"
)

// streams are both sides of a process's standard input, output and error. The
// one who made them closes theirs after the start, and ours if it fails.
type streams struct {
	terminal bool
	theirs   []*os.File // the process's 0, 1 and 2, or its terminal
	input    *os.File   // our side; nil without input
	sources  []*os.File // our side: output and error, or the terminal
	ours     []*os.File // all of our side
}

// newStreams makes the streams a request asks for. Errors are ready to be
// returned from a handler.
func newStreams(u account.User, req *pb.StartRequest) (*streams, error) {
	var s *streams
	var err error
	if req.GetPty() == nil {
		s, err = newPipes(req.Stdin == nil || req.GetStdin())
	} else {
		size, bad := terminalSize(req.GetPty())
		if bad != nil {
			return nil, bad
		}
		s, err = newTerminal(u, size)
	}
	if err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	return s, nil
}

// descriptors are what the process gets as 0, 1 and 2. Fd makes them block, as
// programs expect.
func (s *streams) descriptors() []uintptr {
	if s.terminal {
		fd := s.theirs[0].Fd()
		return []uintptr{fd, fd, fd}
	}
	return []uintptr{s.theirs[0].Fd(), s.theirs[1].Fd(), s.theirs[2].Fd()}
}

func newTerminal(u account.User, size unix.Winsize) (*streams, error) {
	ours, theirs, err := openTerminal(u, size)
	if err != nil {
		return nil, err
	}
	return &streams{
		terminal: true,
		theirs:   []*os.File{theirs},
		input:    ours,
		sources:  []*os.File{ours},
		ours:     []*os.File{ours},
	}, nil
}

func newPipes(stdin bool) (*streams, error) {
	s := &streams{}
	err := s.addInput(stdin)
	for err == nil && len(s.sources) < 2 {
		var read, write *os.File
		if read, write, err = os.Pipe(); err == nil {
			s.theirs = append(s.theirs, write)
			s.sources = append(s.sources, read)
			s.ours = append(s.ours, read)
		}
	}
	if err != nil {
		closeAll(s.theirs)
		closeAll(s.ours)
		return nil, fmt.Errorf("make pipes: %w", err)
	}
	return s, nil
}

func (s *streams) addInput(stdin bool) error {
	if !stdin {
		null, err := os.Open(os.DevNull)
		if err == nil {
			s.theirs = append(s.theirs, null)
		}
		return err
	}
	read, write, err := os.Pipe()
	if err == nil {
		s.theirs = append(s.theirs, read)
		s.input = write
		s.ours = append(s.ours, write)
	}
	return err
}

// closeAll closes files. What can fail then is closing them twice.
func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
