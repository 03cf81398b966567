package ingress

import (
	"fmt"
	"io"
	"net"
	"syscall"
	"unsafe"
)

// socket reads and writes a connection without telling Go's scheduler of every
// call: none of them blocks, and announcing each costs a busy server more than
// much of its own work. Waiting, deadlines and closing are the connection's as
// ever. One goroutine may read while another writes.
type socket struct {
	raw syscall.RawConn
	// What raw is given, made once: it would be garbage of every call.
	receive, send func(fd uintptr) bool

	in      []byte
	wait    bool // until there is something
	got     int
	readErr syscall.Errno

	out      []byte
	sent     int
	peek     bool // before anything is sent
	spoken   bool // the peer has said something or closed, and nothing was sent
	writeErr syscall.Errno
}

func newSocket() *socket {
	s := new(socket)
	s.receive, s.send = s.receiveNow, s.sendNow
	return s
}

// attach makes the socket that of a connection, in the place of any other.
func (s *socket) attach(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("look into connection: %w", err)
	}
	s.raw = raw
	return nil
}

// Read implements io.Reader.
func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	err := s.read(p, true)
	switch {
	case err != nil:
		return 0, err
	case s.readErr != 0:
		return 0, s.readErr
	case s.got == 0:
		return 0, io.EOF
	}
	return s.got, nil
}

// ReadNow reads what is there already. It returns 0 when that is nothing, and
// when Read would fail.
func (s *socket) ReadNow(p []byte) int {
	if err := s.read(p, false); err != nil {
		return 0
	}
	return s.got
}

func (s *socket) read(p []byte, wait bool) error {
	s.in, s.wait, s.got, s.readErr = p, wait, 0, 0
	err := s.raw.Read(s.receive)
	s.in = nil
	return err
}

// receiveNow reports whether reading is over, one way or another.
func (s *socket) receiveNow(fd uintptr) bool {
	for {
		n, err := recv(fd, s.in, 0)
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			if s.wait {
				return false
			}
		}
		s.got, s.readErr = n, err
		return true
	}
}

// Write implements io.Writer.
func (s *socket) Write(p []byte) (int, error) {
	s.peek = false
	return s.write(p)
}

// WriteIfQuiet writes on a connection on which the peer neither has said
// anything that was not read nor has closed it. quiet is false when it has; then
// nothing was written.
func (s *socket) WriteIfQuiet(p []byte) (n int, quiet bool, err error) {
	s.peek = true
	n, err = s.write(p)
	return n, !s.spoken, err
}

func (s *socket) write(p []byte) (int, error) {
	s.out, s.sent, s.spoken, s.writeErr = p, 0, false, 0
	err := s.raw.Write(s.send)
	s.out = nil
	if err == nil && s.writeErr != 0 {
		err = s.writeErr
	}
	return s.sent, err
}

// sendNow reports whether writing is over, one way or another.
func (s *socket) sendNow(fd uintptr) bool {
	if s.peek {
		s.peek = false
		var one [1]byte
		if _, err := recv(fd, one[:], syscall.MSG_PEEK); err != syscall.EAGAIN {
			s.spoken = true
			return true
		}
	}
	for s.sent < len(s.out) {
		rest := s.out[s.sent:]
		n, _, err := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)), syscall.MSG_NOSIGNAL, 0, 0)
		switch err {
		case 0:
			s.sent += int(n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			s.writeErr = err
			return true
		}
	}
	return true
}

// recv receives into p, which is not empty, on a descriptor that never blocks.
func recv(fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), flags, 0, 0)
	if err != 0 {
		return 0, err
	}
	return int(n), 0
}
