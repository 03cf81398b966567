package ingress

import (
	"syscall"
	"time"
)

// lines are the idle connections into a sandbox that callers use, by port, the
// last used at the end. net/http has its own. Everything here is guarded by
// up.mu.
type lines struct {
	byPort map[uint16][]*upstreamConn
	reaper *time.Timer // nil when nothing is idle
}

// maxLines bounds the idle connections to one port.
const maxLines = 1024

// take returns an idle connection to a port, or nil.
func (up *upstream) take(port uint16) *upstreamConn {
	up.mu.Lock()
	defer up.mu.Unlock()
	all := up.idle.byPort[port]
	if len(all) == 0 {
		return nil
	}
	line := all[len(all)-1]
	if time.Since(line.since) > idleTimeout {
		return nil // and so are all others; they will be reaped
	}
	all[len(all)-1] = nil
	up.idle.byPort[port] = all[:len(all)-1]
	return line
}

// use tells who is waiting on a connection; false when the exchange must not go
// on.
func (up *upstream) use(line *upstreamConn, c *caller) bool {
	up.mu.Lock()
	defer up.mu.Unlock()
	if up.ended || c.refused != nil {
		return false
	}
	c.line = line
	return true
}

// goesOn reports whether an exchange may go on.
func (up *upstream) goesOn(c *caller) bool {
	up.mu.Lock()
	defer up.mu.Unlock()
	return !up.ended && c.refused == nil
}

// give takes a connection back when nobody waits on it any more, and keeps it
// if it can be used again.
func (up *upstream) give(line *upstreamConn, c *caller, again bool) {
	up.mu.Lock()
	c.line = nil
	keep := again && !up.ended && c.refused == nil && up.idle.put(line, up.reap)
	up.mu.Unlock()
	if !keep {
		_ = line.Close() // fails only when it is closed already
	}
}

func (l *lines) put(line *upstreamConn, reap func()) bool {
	if len(l.byPort[line.port]) >= maxLines {
		return false
	}
	if l.byPort == nil {
		l.byPort = make(map[uint16][]*upstreamConn)
	}
	line.since = time.Now()
	l.byPort[line.port] = append(l.byPort[line.port], line)
	if l.reaper == nil {
		l.reaper = time.AfterFunc(idleTimeout, reap)
	}
	return true
}

func (l *lines) stop() {
	if l.reaper != nil {
		l.reaper.Stop()
	}
	l.byPort = nil
}

// reap closes what has been idle for too long.
func (up *upstream) reap() {
	up.mu.Lock()
	defer up.mu.Unlock()
	if up.ended {
		return
	}
	before := time.Now().Add(-idleTimeout)
	for port, all := range up.idle.byPort {
		n := 0
		for n < len(all) && all[n].since.Before(before) {
			delete(up.conns, all[n])
			_ = all[n].TCPConn.Close() // fails only when it is closed already
			n++
		}
		if all = all[n:]; len(all) > 0 {
			up.idle.byPort[port] = all
		} else {
			delete(up.idle.byPort, port)
		}
	}
	if len(up.idle.byPort) > 0 {
		up.idle.reaper.Reset(idleTimeout)
	} else {
		up.idle.reaper = nil
	}
}

// isQuiet reports whether an idle connection is as it was left: neither closed
// by the app nor spoken on. What the app said there unasked would be taken for
// the answer to the next request. The deadline for reading must lie ahead.
func (c *upstreamConn) isQuiet() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var seen error
	err = raw.Read(func(fd uintptr) bool {
		var one [1]byte
		_, _, seen = syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	})
	return err == nil && seen == syscall.EAGAIN
}
