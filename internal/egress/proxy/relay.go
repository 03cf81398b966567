package proxy

import (
	"io"
	"net"
	"sync"
	"time"
)

// half is one direction of a flow.
type half struct {
	copied int64  // bytes
	rest   []byte // was read and is still to be passed on
	ended  bool   // there is no more, and who receives it knows
}

// relay copies both ways until both sides have ended. The end of one direction
// is passed on as such; an error in one resets both connections. Between two TCP
// connections the kernel copies by itself (splice).
func relay(client, server *net.TCPConn, up, down *half) {
	var back sync.WaitGroup
	back.Go(func() { down.pass(client, server) })
	up.pass(server, client)
	back.Wait()
}

// pass copies one direction.
func (h *half) pass(to, from *net.TCPConn) {
	if h.ended {
		return
	}
	n, err := to.Write(h.rest)
	h.copied += int64(n)
	if err == nil {
		var more int64
		more, err = to.ReadFrom(from)
		h.copied += more
	}
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		reset(to)
		reset(from)
	}
}

// reset closes a connection so that the other side cannot take it for a
// regular end.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0) // both fail only on a connection that is closed
	_ = conn.Close()
}

// How much of what a client still sends is read, and for how long, so that the
// last thing it was sent is not lost in a reset.
const (
	lingerBytes = 256 << 10
	lingerTime  = time.Second
)

// linger ends a connection in good order after a last answer.
func linger(conn *net.TCPConn) {
	_ = conn.CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, conn, lingerBytes)
	_ = conn.Close()
}
