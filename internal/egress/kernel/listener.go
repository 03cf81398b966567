package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/socket"
)

// listener is a netlink socket on which the kernel tells what happens. It is not
// among those that the Go runtime waits for: the runtime would be woken for every
// message, also while nobody wants to read it yet.
type listener struct {
	fd   int
	wake socket.Alarm // ends waiting
	lost *atomic.Uint64
}

// eventBuffer is how many bytes of events wait for being read.
const eventBuffer = 4 << 20

func openListener(lost *atomic.Uint64) (*listener, error) {
	wake, err := socket.NewAlarm()
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink socket: %w", err), unix.Close(int(wake)))
	}
	l := &listener{fd: fd, wake: wake, lost: lost}
	err = unix.Bind(fd, kernelSide())
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink socket: %w", err), l.close())
	}
	return l, nil
}

// close must not be called while run runs.
func (l *listener) close() error { return errors.Join(unix.Close(l.fd), unix.Close(int(l.wake))) }

// join subscribes to a multicast group.
func (l *listener) join(group int) error {
	if err := unix.SetsockoptInt(l.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
		return fmt.Errorf("join netlink group %d: %w", group, err)
	}
	return nil
}

// run hands over messages until ctx ends.
func (l *listener) run(ctx context.Context, each func(message)) error {
	defer l.wake.Set(ctx)()
	in := newInbox()
	for ctx.Err() == nil {
		if err := l.wait(); err != nil {
			return fmt.Errorf("wait for events: %w", err)
		}
		gather(ctx)
		if err := l.drain(ctx, in, each); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
	return nil
}

// wait returns when there is something to read, or when it is woken.
func (l *listener) wait() error {
	fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(l.wake), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// drain hands over all messages that there are.
func (l *listener) drain(ctx context.Context, in *inbox, each func(message)) error {
	for ctx.Err() == nil {
		switch err := in.receive(l.fd); {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ENOBUFS): // more than fit; what did is still to be read
			l.lost.Add(1)
			continue
		case err != nil:
			return err
		}
		for datagram := range in.datagrams() {
			if _, err := eachMessage(datagram, func(m message) bool { each(m); return true }); err != nil {
				l.lost.Add(1)
			}
		}
	}
	return nil
}

// gatherTime is how long messages are left to pile up after the first. To wake
// for each of them costs more than all that is done with it. What comes in this
// time takes a fraction of eventBuffer: each message counts as a kilobyte or so.
const gatherTime = 25 * time.Millisecond

func gather(ctx context.Context) {
	select {
	case <-time.After(gatherTime):
	case <-ctx.Done():
	}
}

// ask sends a request and waits for its confirmation, before anything else is
// received.
func (l *listener) ask(kind uint16, resource uint16, attributes []byte) error {
	request := appendMessage(nil, kind, unix.NLM_F_ACK, 0, unix.AF_UNSPEC, resource, attributes)
	if err := unix.Sendto(l.fd, request, 0, kernelSide()); err != nil {
		return err
	}
	buf := make([]byte, 8<<10)
	n, _, err := unix.Recvfrom(l.fd, buf, 0) // the kernel has answered while we sent
	if err != nil {
		return err
	}
	outcome := unix.Errno(unix.EBADMSG)
	if _, err := eachMessage(buf[:n], func(m message) bool {
		if m.kind == unix.NLMSG_ERROR {
			outcome = m.errno()
		}
		return true
	}); err != nil {
		return err
	}
	if outcome != 0 {
		return outcome
	}
	return nil
}

// message is one that the kernel sent.
type message struct {
	kind uint16
	seq  int
	port uint32 // of the socket on whose behalf
	body []byte
}

// errno is the outcome that a message of kind NLMSG_ERROR reports.
func (m message) errno() unix.Errno {
	if len(m.body) < 4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.body)))
}

// eachMessage hands over the messages of a batch for as long as more are wanted.
func eachMessage(b []byte, each func(message) (more bool)) (more bool, err error) {
	for len(b) >= headerLen {
		length := int(binary.NativeEndian.Uint32(b))
		if length < headerLen || length > len(b) {
			return false, unix.EBADMSG
		}
		m := message{
			kind: binary.NativeEndian.Uint16(b[4:]),
			seq:  int(binary.NativeEndian.Uint32(b[8:])),
			port: binary.NativeEndian.Uint32(b[12:]),
			body: b[headerLen:length],
		}
		if !each(m) {
			return false, nil
		}
		b = b[min(aligned(length), len(b)):]
	}
	return true, nil
}
