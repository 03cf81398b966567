package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lastWords is how much is kept of what a process of a box writes to its
// standard error, in bytes.
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

// addPipe adds one end of a pipe and returns the other.
func (s *fileSet) addPipe(flag string, childReads bool) *os.File {
	r, w, err := os.Pipe()
	if err != nil {
		s.err = errors.Join(s.err, fmt.Errorf("create pipe for %s: %w", flag, err))
		return nil
	}
	if childReads {
		s.add(flag, r, nil)
		return w
	}
	s.add(flag, w, nil)
	return r
}

// addSocket adds one end of a connection and returns the other.
func (s *fileSet) addSocket(flag string) *os.File {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.err = errors.Join(s.err, fmt.Errorf("create connection for %s: %w", flag, err))
		return nil
	}
	s.add(flag, os.NewFile(uintptr(fds[1]), flag), nil)
	return os.NewFile(uintptr(fds[0]), flag)
}

func (s *fileSet) close() { closeAll(s.ours) }

// held are the files that the process which made a box keeps of it. The box
// does not need them. A nil held keeps nothing.
type held struct {
	// A prepared box is given its host name by the pause program, which reads
	// it from its standard input and answers on its standard output.
	name, answer *os.File
	// What the sentry and the gofer write to their standard error, and the guest.
	words, guestWords *os.File
	// ring keeps what is slow to close: see startSentry.
	ring *os.File
}

func (h *held) close() {
	if h != nil {
		closeAll([]*os.File{h.name, h.answer, h.words, h.guestWords, h.ring})
	}
}

// nameBox gives the box its host name, unless that is empty. It is called once.
func (h *held) nameBox(ctx context.Context, name string) error {
	defer func() {
		closeAll([]*os.File{h.name, h.answer})
		h.name, h.answer = nil, nil
	}()
	if name == "" {
		return nil
	}
	if _, err := h.name.WriteString(name); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := awaitByte(ctx, h.answer); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

// said returns what the processes of the box wrote to standard error.
func (h *held) said() string {
	if h == nil {
		return ""
	}
	return textOf(h.words) + textOf(h.guestWords)
}

// textOf returns what was written to a file of fixedFile, as far as it is text.
func textOf(f *os.File) string {
	if f == nil {
		return ""
	}
	buf := make([]byte, lastWords)
	n, _ := f.ReadAt(buf, 0) // what cannot be read is not shown
	text, _, _ := bytes.Cut(buf[:n], []byte{0})
	return string(text)
}

// newWords returns the files for what processes write to standard error.
func (h *held) newWords() (err error) {
	for _, f := range []**os.File{&h.words, &h.guestWords} {
		if *f, err = fixedFile("stderr", lastWords); err != nil {
			return err
		}
	}
	return nil
}

// closeAll closes the files that are not nil.
func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
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

// fixedFile returns an anonymous file whose size nobody can change. It serves
// as a standard stream: reading ends, writing beyond the size fails, and unlike
// a pipe it does not end the writer when nobody listens any more.
func fixedFile(name string, size int64) (*os.File, error) {
	f, err := memFile(name, nil)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(size)
	if err == nil {
		seals := unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("fix size of %s: %w", name, err)
	}
	return f, nil
}
