package socket

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is a datagram as recvmmsg(2) and sendmmsg(2) have it, their struct
// mmsghdr: many of them go with one system call.
type Message struct {
	unix.Msghdr
	Length uint32 // of what was received or sent, in bytes
}

// ReceiveMany receives at most as many datagrams as there are messages and
// returns how many. Unlike the calls for TCP it may be told to wait, by flags. The
// error is a unix.Errno.
func ReceiveMany(fd int, into []Message, flags uintptr) (int, error) {
	return many(unix.SYS_RECVMMSG, fd, into, flags)
}

// SendMany sends datagrams in order and returns how many were taken before one
// was not. The error, of the first only, is a unix.Errno.
func SendMany(fd int, from []Message) (int, error) {
	return many(unix.SYS_SENDMMSG, fd, from, 0)
}

func many(call uintptr, fd int, messages []Message, flags uintptr) (int, error) {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(messages))), uintptr(len(messages)), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
