package ingress

import "time"

// lines are the idle connections into a sandbox that callers use, by port, the
// last used at the end. net/http has its own. Everything here is guarded by
// up.mu.
type lines struct {
	byPort map[uint16][]*upstreamConn
	reaper *time.Timer // nil when nothing is idle
}

// maxLines bounds the idle connections to one port.
const maxLines = 1024

// enterCaller is enter for a caller, who gets an idle connection to a port with
// it if there is one.
func (up *upstream) enterCaller(c *caller, limit int, port uint16, now time.Time) error {
	up.mu.Lock()
	defer up.mu.Unlock()
	if err := up.admit(c, limit); err != nil {
		return err
	}
	c.line = up.idle.take(port, now)
	return nil
}

// leaveCaller is leave for a caller that has not done so. Its connection is
// kept if it can be used again.
func (up *upstream) leaveCaller(c *caller, again bool, now time.Time) {
	up.mu.Lock()
	delete(up.parties, c)
	line := c.line
	c.line = nil
	keep := line == nil || again && !up.ended && c.refused == nil && up.keep(line, now)
	up.mu.Unlock()
	if !keep {
		_ = line.Close() // fails only when it is closed already
	}
}

// take returns an idle connection to a port, or nil.
func (l *lines) take(port uint16, now time.Time) *upstreamConn {
	all := l.byPort[port]
	if len(all) == 0 {
		return nil
	}
	line := all[len(all)-1]
	if now.Sub(line.since) > idleTimeout {
		return nil // and so are all others; they will be reaped
	}
	all[len(all)-1] = nil
	l.byPort[port] = all[:len(all)-1]
	return line
}

// use tells who is waiting on a fresh connection; false when the exchange must
// not go on.
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

// keep keeps an idle connection, unless there are enough. The caller holds
// up.mu.
func (up *upstream) keep(line *upstreamConn, now time.Time) bool {
	l := &up.idle
	if len(l.byPort[line.port]) >= maxLines {
		return false
	}
	if l.byPort == nil {
		l.byPort = make(map[uint16][]*upstreamConn)
	}
	line.since = now
	l.byPort[line.port] = append(l.byPort[line.port], line)
	if l.reaper == nil {
		l.reaper = time.AfterFunc(idleTimeout, up.reap)
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
