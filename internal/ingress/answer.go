package ingress

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"time"
)

// answer is a client's end of one exchange. It lets the upstream break the
// exchange off, and passes the sandbox's answer on without additions.
type answer struct {
	http.ResponseWriter
	x    *exchange
	stop context.CancelCauseFunc // ends the request to the sandbox

	begun   bool     // a final status was sent; guarded by up.mu, as are the two below
	client  net.Conn // set once the connection is upgraded
	refused *failure // set once access is withdrawn
}

// Unwrap lets http.ResponseController reach the server's own writer.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if status == http.StatusContinue {
		return // net/http says it as soon as the body is read, which is now
	}
	if status >= http.StatusOK {
		// net/http guesses a type for answers that name none. The app's
		// silence may be deliberate.
		if h := a.Header(); len(h["Content-Type"]) == 0 {
			h["Content-Type"] = nil
		}
		a.x.record.Status = status
		a.begin()
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.x.meter.toClient(n)
	return n, err
}

// begin notes that from now on the client can only be told of an end by
// breaking off.
func (a *answer) begin() {
	a.x.up.mu.Lock()
	defer a.x.up.mu.Unlock()
	a.begun = true
	if a.over() {
		a.cut()
	}
}

// over reports whether the exchange must not go on. Called with up.mu held.
func (a *answer) over() bool { return a.x.up.ended || a.refused != nil }

// cut implements party.
func (a *answer) cut() {
	switch {
	case a.client != nil:
		reset(a.client)
	case a.begun:
		// A client that has stopped reading must not hold the handler up. An
		// error here means that the connection has already failed.
		_ = http.NewResponseController(a.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
}

// withdraw implements party.
func (a *answer) withdraw(why *failure) {
	a.refused = why
	a.cut()
	a.stop(errRefused)
}

// subject implements party.
func (a *answer) subject() (route, *http.Request) { return a.x.route, a.x.request }

// withdrawn is why access was withdrawn, if it was.
func (a *answer) withdrawn() *failure {
	a.x.up.mu.Lock()
	defer a.x.up.mu.Unlock()
	return a.refused
}

// Hijack implements http.Hijacker for upgraded connections.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	a.x.up.mu.Lock()
	defer a.x.up.mu.Unlock()
	a.client = conn
	a.x.in.clients.upgraded.Add(1)
	a.x.record.Status = http.StatusSwitchingProtocols
	if a.over() {
		reset(conn)
		return nil, nil, errEnded
	}
	return &clientConn{Conn: conn, early: rw.Reader, meter: &a.x.meter, buffers: &a.x.in.buffers}, rw, nil
}

// upgraded reports whether the connection no longer speaks HTTP.
func (a *answer) upgraded() bool {
	a.x.up.mu.Lock()
	defer a.x.up.mu.Unlock()
	return a.client != nil
}

// end closes the client's end of the exchange. It makes sure that a broken
// answer does not look complete: over HTTP/1.0 the end of the connection is the
// end of the body, so it is reset; later versions show by their framing that
// something is missing.
func (a *answer) end(r *http.Request, broken bool) {
	if a.upgraded() {
		a.x.in.clients.upgraded.Add(-1)
		return
	}
	if !broken {
		return
	}
	if a.x.record.Status != 0 {
		a.x.record.Failure = codeBrokenOff
	}
	if !r.ProtoAtLeast(1, 1) {
		if conn, _, err := http.NewResponseController(a.ResponseWriter).Hijack(); err == nil {
			reset(conn)
		}
	}
}
