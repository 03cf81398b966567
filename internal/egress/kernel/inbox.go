package kernel

import (
	"iter"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inbox receives many datagrams in one system call. The kernel puts each event
// into one of its own.
type inbox struct {
	heads   [inboxSize]mmsghdr
	vectors [inboxSize]unix.Iovec
	buffers [inboxSize][inboxWidth]byte
	filled  int
}

const (
	inboxSize  = 32
	inboxWidth = 8 << 10 // bytes; events have some hundred, batches of refusals up to a page
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	head   unix.Msghdr
	length uint32
}

func newInbox() *inbox {
	in := &inbox{}
	for i := range in.heads {
		in.vectors[i].Base = &in.buffers[i][0]
		in.vectors[i].SetLen(inboxWidth)
		in.heads[i].head.Iov = &in.vectors[i]
		in.heads[i].head.SetIovlen(1)
	}
	return in
}

// receive takes as many datagrams as there are and fit. With an error, which is
// EAGAIN if there are none, it has taken none.
func (in *inbox) receive(fd int) error {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in.heads[0])), inboxSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case 0:
			in.filled = int(n)
			return nil
		}
		in.filled = 0
		return errno
	}
}

// datagrams yields what was received. One that did not fit ends early, which its
// reader finds out.
func (in *inbox) datagrams() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := range in.filled {
			if !yield(in.buffers[i][:in.heads[i].length]) {
				return
			}
		}
	}
}
