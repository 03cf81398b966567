package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// watch looks at a client that has sent its request and waits for the answer.
// A client that goes away ends the exchange. It reads ahead by one byte, so
// nothing else may read from the client until it has seen something.
type watch struct{ seen chan struct{} }

// startWatch calls gone when the client is gone before ctx ends.
func (s *session) startWatch(ctx context.Context, gone func()) {
	w := &watch{seen: make(chan struct{})}
	s.watch = w
	s.flow.proxy.flows.Go(func() {
		_, err := s.in.Peek(1)
		close(w.seen)
		switch {
		case err == nil, isTimeout(err):
		case errors.Is(err, io.EOF) && s.sni == (policy.Name{}): // nobody closes only half of TLS
			watchHalfClosed(ctx, s.flow.client, gone)
		default:
			gone()
		}
	})
}

// endWatch waits until the watch, if there is one, has seen something.
func (s *session) endWatch() {
	if s.watch != nil {
		<-s.watch.seen
		s.watch = nil
	}
}

// breakWatch makes the watch end now. What it has read stays to be read.
func (s *session) breakWatch() {
	s.stopReading()
	s.endWatch()
	_ = s.flow.client.SetReadDeadline(time.Time{})
}

// stopReading makes whoever reads from the client stop.
func (s *session) stopReading() { _ = s.flow.client.SetReadDeadline(time.Unix(1, 0)) }

// halfClosedInterval is how often a client that sends nothing more is looked at.
const halfClosedInterval = 15 * time.Second

// watchHalfClosed looks after a client that has ended its side. It may still
// wait for the answer, or be gone altogether: that only shows when the kernel
// gets no answer from it.
func watchHalfClosed(ctx context.Context, client *net.TCPConn, gone func()) {
	look := time.NewTicker(halfClosedInterval)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			if isClosed(client) {
				gone()
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// tcpClosed is TCP_CLOSE of the kernel's tcp_states.h.
const tcpClosed = 7

func isClosed(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	closed := true
	_ = raw.Control(func(fd uintptr) { // if it fails the connection is closed
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err != nil || info.State == tcpClosed
	})
	return closed
}
