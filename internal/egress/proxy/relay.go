package proxy

import (
	"io"
	"net"
	"sync"
	"time"
)

// traffic is how many bytes went over a flow.
type traffic struct{ up, down int64 }

// relay sends what was peeked and then copies both ways until both sides have
// ended. The end of one direction is passed on as such; an error in one resets
// both connections. Between two TCP connections the kernel copies by itself
// (splice).
func relay(client, server *net.TCPConn, peeked []byte) (t traffic) {
	n, err := server.Write(peeked)
	t.up = int64(n)
	if err != nil {
		reset(client)
		return t
	}
	var back sync.WaitGroup
	back.Go(func() { t.down = pass(client, server) })
	sent := pass(server, client)
	back.Wait()
	t.up += sent
	return t
}

// pass copies one direction.
func pass(to, from *net.TCPConn) int64 {
	n, err := to.ReadFrom(from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		reset(to)
		reset(from)
	}
	return n
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
