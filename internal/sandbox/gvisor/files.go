package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lastWords is how much of what a guest writes to its standard error is kept,
// in bytes, to be shown when it ends at once.
const lastWords = 16 << 10

// fileSet collects the files that a new process inherits, and closes ours.
// Errors stick.
type fileSet struct {
	donations []donation
	ours      []*os.File
	err       error
}

func (s *fileSet) add(flag string, f *os.File, err error) {
	if err != nil {
		s.err = errors.Join(s.err, err)
		return
	}
	s.donations = append(s.donations, donation{flag, f})
	s.ours = append(s.ours, f)
}

// lend adds a file that the caller keeps.
func (s *fileSet) lend(flag string, f *os.File) {
	s.donations = append(s.donations, donation{flag, f})
}

// addMem adds an anonymous file with the given content.
func (s *fileSet) addMem(flag string, content []byte) {
	f, err := memFile(flag, content)
	s.add(flag, f, err)
}

func (s *fileSet) close() { closeAll(s.ours) }

// naming is how a prepared box is given its host name: the pause program reads
// it from its standard input and answers on its standard output.
type naming struct {
	name, answer *os.File
}

func (n *naming) close() {
	if n != nil {
		n.name.Close()
		n.answer.Close()
	}
}

// set gives the box its host name, unless that is empty, and closes n.
func (n *naming) set(ctx context.Context, name string) error {
	defer n.close()
	if name == "" {
		return nil
	}
	if _, err := n.name.WriteString(name); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := awaitByte(ctx, n.answer); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

// addNaming adds the standard streams of the pause program.
func (s *fileSet) addNaming() (*naming, error) {
	stdin, name, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("create pipe: %w", err)
	}
	s.add("stdio-fds", stdin, nil)
	answer, stdout, err := os.Pipe()
	if err != nil {
		name.Close()
		return nil, fmt.Errorf("create pipe: %w", err)
	}
	s.add("stdio-fds", stdout, nil)
	stderr, err := fixedFile("stderr", 0)
	s.add("stdio-fds", stderr, err)
	return &naming{name: name, answer: answer}, nil
}

// guestStreams returns the guest's standard input, which is empty, standard
// output, which takes nothing, and standard error, of which the beginning is
// kept.
func guestStreams() ([]*os.File, error) {
	var streams []*os.File
	for _, stream := range []struct {
		name string
		size int
	}{{"stdin", 0}, {"stdout", 0}, {"stderr", lastWords}} {
		f, err := fixedFile(stream.name, stream.size)
		if err != nil {
			closeAll(streams)
			return nil, err
		}
		streams = append(streams, f)
	}
	return streams, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// memFile returns an anonymous file with the given content.
func memFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	return f, nil
}

// fixedFile returns an anonymous file of zeros whose size nobody can change. It
// serves as a standard stream: reading ends, writing beyond the size fails, and
// unlike a pipe it does not end the writer when nobody listens any more. A
// device file would not do: gVisor changes the owner of standard streams.
func fixedFile(name string, size int) (*os.File, error) {
	f, err := memFile(name, make([]byte, size))
	if err != nil {
		return nil, err
	}
	seals := unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return f, nil
}
