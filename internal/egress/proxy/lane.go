package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/socket"
)

// lane accepts connections and carries those that are TLS for as long as there
// is little to do for them: it reads the ClientHello, connects, and copies what
// comes. One goroutine does that for all connections of a lane and waits in the
// kernel for all of them together. To wake a goroutine for each step costs more
// than the steps do.
//
// Nothing here waits for anything else. A connection that is refused, looked
// into, slow to be made, or that has much to copy goes on in a goroutine of its
// own.
type lane struct {
	proxy     *Proxy
	epoll     int
	wake      socket.Alarm // for when run shall end
	listeners []int

	// Used by run alone:

	ctx context.Context // that of run
	// passages are found by each of their descriptors.
	passages map[int]*passage
	look     time.Time // when to look for those that wait for too long; zero: none do
	page     [relayPage]byte
	buffers  [][]byte      // of peekSize
	deaf     time.Time     // until when nothing is accepted, which has failed; zero: it is
	pause    time.Duration // how long that takes the next time
}

const (
	// relayPage is how much is copied at a time.
	relayPage = 64 << 10
	// lookInterval is how often to look for connections that wait for too long.
	lookInterval = 50 * time.Millisecond
	// laneEvents is how many events are taken from the kernel at a time.
	laneEvents = 128
	// maxBuffers bounds the buffers that are kept to be used again.
	maxBuffers = 256
)

// openLanes takes listeners over, which all lanes share.
func (p *Proxy) openLanes(listeners []*net.TCPListener) (lanes []*lane, err error) {
	defer func() {
		for _, ln := range listeners {
			err = errors.Join(err, ln.Close()) // the lanes have descriptors of their own
		}
		if err != nil {
			for _, l := range lanes {
				l.close()
			}
		}
	}()
	// One processor is left to all others: were every one of them waiting in the
	// kernel, the scheduler would be busy with taking them away.
	for range max(1, runtime.GOMAXPROCS(0)-1) {
		l := &lane{proxy: p, epoll: -1, wake: -1, passages: make(map[int]*passage), pause: shortestPause}
		lanes = append(lanes, l)
		if err := l.open(listeners); err != nil {
			return lanes, fmt.Errorf("proxy: %w", err)
		}
	}
	return lanes, nil
}

func (l *lane) open(listeners []*net.TCPListener) (err error) {
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if l.wake, err = socket.NewAlarm(); err != nil {
		return err
	}
	if err := l.watch(int(l.wake), unix.EPOLLIN); err != nil {
		return err
	}
	for _, ln := range listeners {
		fd, err := descriptor(ln)
		if err != nil {
			return err
		}
		l.listeners = append(l.listeners, fd)
	}
	return l.listen()
}

// listen has the kernel tell of new connections, one lane of each.
func (l *lane) listen() error {
	l.deaf = time.Time{}
	for _, fd := range l.listeners {
		if err := l.watch(fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE); err != nil {
			return err
		}
	}
	return nil
}

// unwatch is for a descriptor that somebody else will use.
func (l *lane) unwatch(fd int) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil) // fails where it was not watched
}

// descriptor returns another descriptor of a listener.
func descriptor(ln *net.TCPListener) (fd int, err error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return -1, err
	}
	var failed error
	err = raw.Control(func(own uintptr) { fd, failed = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, os.NewSyscallError("fcntl", failed))
}

func (l *lane) close() {
	for _, fd := range append(l.listeners, int(l.wake), l.epoll) {
		if fd >= 0 {
			socket.Close(fd)
		}
	}
}

// watch has the kernel tell of events on a descriptor.
func (l *lane) watch(fd int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}))
}

// run serves until ctx ends; then it resets what it carries.
func (l *lane) run(ctx context.Context) error {
	l.ctx = ctx
	defer l.close()
	defer l.wake.Set(ctx)()
	defer l.abandon()
	var events [laneEvents]unix.EpollEvent
	for l.ctx.Err() == nil {
		n, err := unix.EpollWait(l.epoll, events[:], l.timeout())
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("proxy: %w", os.NewSyscallError("epoll_wait", err))
		}
		for _, e := range events[:max(n, 0)] {
			if err := l.handle(int(e.Fd), e.Events); err != nil {
				return err
			}
		}
		if err := l.hurry(); err != nil {
			return err
		}
	}
	return nil
}

// timeout is how many milliseconds to wait for events at most; -1 is for ever.
func (l *lane) timeout() int {
	if l.look.IsZero() {
		return -1
	}
	return int(max(0, (time.Until(l.look)+time.Millisecond-1)/time.Millisecond))
}

func (l *lane) handle(fd int, events uint32) error {
	if p := l.passages[fd]; p != nil {
		p.advance(fd, events)
		return nil
	}
	for _, ln := range l.listeners {
		if fd == ln {
			return l.accept(fd)
		}
	}
	return nil // wake, or one that has ended since
}

// hurry looks, if it is time to, for what has waited for too long.
func (l *lane) hurry() error {
	now := time.Now()
	if l.look.IsZero() || now.Before(l.look) {
		return nil
	}
	l.look = time.Time{}
	switch {
	case l.deaf.IsZero():
	case now.Before(l.deaf):
		l.remember(l.deaf)
	default:
		if err := l.listen(); err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
	}
	for fd, p := range l.passages {
		switch {
		case fd != p.client || p.until.IsZero(): // the other half of one, or one that may wait
		case now.Before(p.until):
			l.remember(p.until)
		default:
			p.overdue()
		}
	}
	if least := now.Add(lookInterval); !l.look.IsZero() && l.look.Before(least) {
		l.look = least
	}
	return nil
}

// remember has run look after passages at a time.
func (l *lane) remember(at time.Time) {
	if l.look.IsZero() || at.Before(l.look) {
		l.look = at
	}
}

// acceptAtOnce is how many connections are accepted before others get their turn.
const acceptAtOnce = 16

// accept takes connections from a listener.
func (l *lane) accept(ln int) error {
	for range acceptAtOnce {
		fd, src, err := socket.Accept(ln)
		switch {
		case err == nil:
			l.pause = shortestPause
			l.admit(fd, src)
		case errors.Is(err, unix.EAGAIN):
			return nil
		case isPassing(err):
			l.proxy.log.Warn("proxy cannot accept connections", "pause", l.pause, "err", err)
			for _, fd := range l.listeners {
				l.unwatch(fd)
			}
			l.deaf = time.Now().Add(l.pause)
			l.remember(l.deaf)
			l.pause = min(2*l.pause, longestPause)
			return nil
		default:
			return fmt.Errorf("proxy: %w", err)
		}
	}
	return nil
}

// admit counts a connection in and serves it. What has no sandbox, or one that
// has too many connections, costs no more than a reset.
func (l *lane) admit(fd int, src netip.AddrPort) {
	p := l.proxy
	tenant, ok := p.tenants.Tenant(src.Addr())
	if !ok || tenant.Sandbox == "" {
		p.log.Debug("connection from an address that no sandbox has", "address", src.Addr())
		abort(fd)
		return
	}
	f := &flow{proxy: p, src: src.Addr(), began: time.Now()}
	q := &passage{lane: l, flow: f, client: fd, server: -1}
	f.passage = q
	f.box = p.boxes.open(tenant.Sandbox)
	if err := f.box.enter(f, p.limits); err != nil {
		p.boxes.release(f.box)
		abort(fd)
		p.recordRefusal(tenant, err)
		return
	}
	q.begin(src)
}

// abort ends a connection with a reset.
func abort(fd int) {
	socket.Abort(fd)
	socket.Close(fd)
}

// abandon resets everything that the lane carries.
func (l *lane) abandon() {
	for fd, p := range l.passages {
		if fd == p.client {
			p.flow.stop("the proxy has stopped")
			p.finish()
		}
	}
}

// buffer returns an empty buffer for the first bytes of a connection.
func (l *lane) buffer() []byte {
	if n := len(l.buffers); n > 0 {
		b := l.buffers[n-1]
		l.buffers = l.buffers[:n-1]
		return b
	}
	return make([]byte, 0, peekSize)
}

// recycle takes a buffer back that nobody uses any more.
func (l *lane) recycle(b []byte) {
	if cap(b) == peekSize && len(l.buffers) < maxBuffers {
		l.buffers = append(l.buffers, b[:0])
	}
}
