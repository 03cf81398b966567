package kernel

import (
	"iter"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/socket"
)

// inbox receives many datagrams in one system call. The kernel puts each event
// into one of its own.
type inbox struct {
	heads   [inboxSize]socket.Message
	vectors [inboxSize]unix.Iovec
	buffers [inboxSize][inboxWidth]byte
	filled  int
}

const (
	inboxSize  = 32
	inboxWidth = 8 << 10 // bytes; events have some hundred, batches of refusals up to a page
)

func newInbox() *inbox {
	in := &inbox{}
	for i := range in.heads {
		in.vectors[i].Base = &in.buffers[i][0]
		in.vectors[i].SetLen(inboxWidth)
		in.heads[i].Iov = &in.vectors[i]
		in.heads[i].SetIovlen(1)
	}
	return in
}

// receive takes as many datagrams as there are and fit. With an error, which is
// EAGAIN if there are none, it has taken none.
func (in *inbox) receive(fd int) error {
	for {
		n, err := socket.ReceiveMany(fd, in.heads[:], unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		in.filled = n
		return err
	}
}

// datagrams yields what was received. One that did not fit ends early, which its
// reader finds out.
func (in *inbox) datagrams() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := range in.filled {
			if !yield(in.buffers[i][:in.heads[i].Length]) {
				return
			}
		}
	}
}
