package ingress

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/moat-sandbox/moat/internal/ingress/wire"
)

const (
	// While an answer takes longer than this or twice as long, somebody watches
	// the client.
	slowAnswer = 50 * time.Millisecond
	// Bodies of some size go from socket to socket, in pieces so that their
	// bytes are counted on the way.
	minSplice = 64 << 10 // bytes
	maxSplice = 1 << 20  // bytes
)

// receive reads into work until the head of an answer is there, or it is clear
// that it will not be plain.
func (c *caller) receive(line *upstreamConn, work []byte) (n int, err error) {
	for {
		m, err := c.hear(line, work[n:])
		n += m
		if err != nil || wire.End(work[:n]) > 0 || n == len(work) || !mayBecomePlain(work[:n]) {
			return n, err
		}
	}
}

// hear reads some of an answer. While that takes long, somebody watches the
// client.
func (c *caller) hear(line *upstreamConn, p []byte) (int, error) {
	for {
		n, err := line.socket.Read(p)
		if err == nil || c.watch != nil || line.deadline.IsZero() || !isTimeout(err) {
			return n, err
		}
		c.watchOver(line)
	}
}

// watchOver lets the answer take its time.
func (c *caller) watchOver(line *upstreamConn) {
	line.bound(time.Time{})
	c.watchClient(line)
}

// relay passes on an answer of which n bytes have come.
func (c *caller) relay(line *upstreamConn, work []byte, n int) outcome {
	r, end := &c.response, wire.End(work[:n])
	if end == 0 || !r.Parse(work[:end], c.request.Method[0] == 'H') {
		return c.relayAny(line, work[:n])
	}
	if !c.begin(r.Status) {
		_ = line.Close()
		return c.fail(errRefused)
	}
	body := int(min(r.Length, int64(n-end)))
	_, err := c.stream.Write(c.clientHead(work[:end+body], end))
	if err == nil {
		c.exchange.meter.toClient(body)
		err = c.copyBody(line, work, r.Length-int64(body))
	}
	if err != nil {
		_ = line.Close()
		return c.breakOff()
	}
	// What came after the answer was not asked for.
	return c.end(!r.Last && n <= end+body)
}

// clientHead turns an answer's head, which ends at end, into the one that the
// client gets, and returns it with what follows.
func (c *caller) clientHead(answer []byte, end int) []byte {
	r := &c.response
	if c.request.Last {
		out := slices.Clone(r.Start)
		for i := range r.Len() {
			if !wire.IsHop(r.Name(i)) {
				out = append(out, r.Line(i)...)
			}
		}
		return append(append(out, "Connection: close\r\n\r\n"...), answer[end:]...)
	}
	// What is kept moves towards the body, the last line first.
	at := end - len("\r\n")
	for i := r.Len() - 1; i >= 0; i-- {
		if line := r.Line(i); !wire.IsHop(r.Name(i)) {
			at -= len(line)
			copy(answer[at:], line)
		}
	}
	at -= len(r.Start)
	copy(answer[at:], r.Start)
	return answer[at:]
}

// copyBody passes on what is left of a body.
func (c *caller) copyBody(line *upstreamConn, work []byte, left int64) error {
	splice := c.tcp != nil && left >= minSplice
	if splice {
		c.watchOver(line)
	}
	for left > 0 {
		var n int64
		var err error
		if splice {
			n, err = c.tcp.ReadFrom(&io.LimitedReader{R: line.TCPConn, N: min(left, maxSplice)})
		} else {
			var m int
			if m, err = c.hear(line, work[:min(left, int64(len(work)))]); m > 0 {
				m, err = c.stream.Write(work[:m])
			}
			n = int64(m)
		}
		c.exchange.meter.toClient(int(n))
		left -= n
		switch {
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

// begin notes that the client is about to be told a status. It fails when the
// exchange must not go on.
func (c *caller) begin(status int) bool {
	up := c.exchange.up
	up.mu.Lock()
	defer up.mu.Unlock()
	if up.ended || c.refused != nil {
		return false
	}
	c.begun = true
	c.exchange.record.Status = status
	return true
}

// end is for an answer that was passed on whole. The connection into the
// sandbox may serve others after it, if it can be used again.
func (c *caller) end(again bool) outcome {
	// The client's leaving would close the line, so nobody may watch any more
	// when another caller can have it.
	here := c.unwatch()
	c.leave(again && here)
	if !here || c.request.Last || c.srv.closing.Load() {
		return over
	}
	return served
}

// breakOff is for an answer that has begun and cannot be passed on whole.
func (c *caller) breakOff() outcome {
	c.unwatch()
	c.exchange.record.Failure = codeBrokenOff
	return over
}

// fail answers in the app's place, if the client is still there.
func (c *caller) fail(err error) outcome {
	if !c.unwatch() {
		return over
	}
	x := &c.exchange
	x.up.mu.Lock()
	f := c.refused
	if f == nil && x.up.ended {
		f = notFound(c.route.address)
	}
	x.up.mu.Unlock()
	if f == nil {
		f = upstreamReset(c.route.address)
	}
	x.in.log.Debug("sandbox gave no answer", "sandbox", c.route.id, "port", c.route.port, "error_code", f.Code, "err", err)
	x.record.Failure, x.record.Status = f.Code, f.Status
	answer := &written{header: make(http.Header)}
	r := c.parsed()
	x.in.refuse(answer, r, f, &x.up.tally)
	_ = answer.send(c.conn, r) // fails when the client has gone after all
	return over
}

// written is an answer of ours on its way to a client without net/http.
type written struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter, as do the two below.
func (w *written) Header() http.Header         { return w.header }
func (w *written) WriteHeader(status int)      { w.status = status }
func (w *written) Write(p []byte) (int, error) { return w.body.Write(p) }

func (w *written) send(to io.Writer, r *http.Request) error {
	answer := http.Response{
		ProtoMajor: 1, ProtoMinor: 1, StatusCode: w.status, Header: w.header, Request: r,
		ContentLength: int64(w.body.Len()), Body: io.NopCloser(&w.body), Close: true,
	}
	return answer.Write(to)
}

// cut implements party.
func (c *caller) cut() {
	if c.begun {
		reset(c.conn)
	}
}

// withdraw implements party.
func (c *caller) withdraw(why *failure) {
	c.refused = why
	c.cut()
	if c.line != nil {
		reset(c.line.TCPConn) // wakes whoever waits for the answer
	}
}

// subject implements party.
func (c *caller) subject() (route, *http.Request) { return c.route, c.parsed() }
