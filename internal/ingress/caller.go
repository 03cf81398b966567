package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/moat-sandbox/moat/internal/ingress/wire"
)

const (
	// A plain request has arrived whole when it is looked at, and fits here.
	maxPlain = 8 << 10 // bytes
	// bodyPause is how long a body that follows its head in another packet is
	// waited for.
	bodyPause = 10 * time.Millisecond
	// deadlineSlack is how much earlier than after idleTime an idle connection
	// may be closed, so that its deadline need not be set for each request.
	deadlineSlack = 10 * time.Second
)

// caller is a client's connection for as long as its requests are plain and let
// in. One goroutine serves it: it reads a request, writes it to the sandbox,
// reads the answer and writes that back.
type caller struct {
	srv  *Server
	in   *Ingress
	conn net.Conn
	tcp  *net.TCPConn // conn, when nothing encrypts it; else nil
	// stream is how conn is read and written here.
	stream io.ReadWriter
	from   netip.Addr

	fresh    bool        // no request has come yet
	waiting  atomic.Bool // between requests
	deadline time.Time   // for reading, as last set; zero when unknown
	now      time.Time   // when the last request came or ended

	*space
	n int // bytes in buf; a request, and what came after it

	// What follows is about the present request.
	size     int // of the request, with its body
	exchange exchange
	watch    *watch // nil while nobody watches the client

	entered bool          // the upstream knows of it
	begun   bool          // guarded by up.mu, as are the two below; see answer
	refused *failure      // why access was withdrawn, if it was
	line    *upstreamConn // into the sandbox
}

// space is what of a caller is large. It serves one after another.
type space struct {
	buf      [maxPlain]byte
	request  wire.Request // in buf, as soon as it is read
	response wire.Response
	socket   *socket

	// What the last request said is most often said again, and its host also by
	// the next client. Each request is compared with it.
	tokens http.Request // holds nothing else; see credentials
	said   []said       // what is in tokens, in the order in which it came
	host   string
	route  route // where host leads

	forwarded []byte // what programs there are told of the client; empty when not known
}

// said is a token and the name of the header that it came in.
type said struct {
	name  string
	value []byte
}

func newSpace() any { return &space{socket: newSocket()} }

func newCaller(s *Server, conn net.Conn) *caller {
	c := &caller{srv: s, in: s.in, conn: conn, stream: conn, fresh: true, now: time.Now(), space: s.spaces.Get().(*space)}
	if tcp, ok := conn.(*net.TCPConn); ok {
		c.tcp = tcp
		if err := c.socket.attach(tcp); err == nil { // else it is closed already
			c.stream = c.socket
		}
	}
	if from, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		c.from = from.AddrPort().Addr().Unmap()
	}
	c.forwarded = c.forwarded[:0]
	c.waiting.Store(true)
	return c
}

// outcome is what became of a request, or of waiting for one.
type outcome uint8

const (
	served outcome = iota // and the connection goes on
	over                  // the connection ends
	beyond                // net/http must see to it; nothing was sent anywhere
)

// serve serves a connection until it ends or is handed over.
func (c *caller) serve() {
	defer func() {
		// A fault in one connection must not end the server.
		if fault := recover(); fault != nil {
			c.in.log.Error("serve connection", "panic", fault, "stack", string(debug.Stack()))
			c.space = nil // somebody may still read into it
			c.close()
		}
	}()
	next := c.greet()
	for next == served {
		if next = c.await(); next == served {
			next = c.serveOne()
		}
		if next == served {
			// Not earlier: until it has left, others may look at the request.
			c.n = copy(c.buf[:], c.buf[c.size:c.n])
		}
	}
	if next == beyond {
		_ = c.conn.SetReadDeadline(time.Time{})
		if c.srv.handOver(c.conn, bytes.Clone(c.buf[:c.n])) {
			return
		}
	}
	c.close()
}

func (c *caller) close() {
	_ = c.conn.Close() // fails only when it is closed already
	c.in.clients.leave()
}

// greet does the TLS handshake, if there is one.
func (c *caller) greet() outcome {
	secure, ok := c.conn.(*tls.Conn)
	if !ok {
		return served
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.in.headerTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && plain.RecordHeader[0] >= 'A' && plain.RecordHeader[0] <= 'Z' {
			_, _ = io.WriteString(plain.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		}
		c.in.log.Debug("TLS handshake", "client", c.from, "err", err)
		return over
	}
	if secure.ConnectionState().NegotiatedProtocol == "h2" {
		return beyond
	}
	return served
}

// await reads until a whole head is there.
func (c *caller) await() outcome {
	c.waiting.Store(true)
	if c.fresh {
		c.arrive()
	} else if c.deadline.Sub(c.now) < idleTime-deadlineSlack {
		c.setDeadline(c.now.Add(idleTime))
	}
	// After the deadline: finishUp sets another one.
	if c.srv.closing.Load() {
		return over
	}
	partial := false
	for c.n == 0 || wire.End(c.buf[:c.n]) == 0 {
		if c.n > 0 {
			c.waiting.Store(false)
			if c.n == len(c.buf) || !mayBecomePlain(c.buf[:c.n]) {
				return beyond
			}
			if !partial && !c.fresh {
				c.setDeadline(time.Now().Add(c.in.headerTimeout))
			}
			partial = true
		}
		n, err := c.stream.Read(c.buf[c.n:])
		c.n += n
		if err != nil {
			return over
		}
	}
	c.waiting.Store(false)
	c.now = time.Now()
	if partial || c.fresh {
		c.deadline = time.Time{}
	}
	c.fresh = false
	return served
}

// arrive reads what has come with a new connection, most often all of the first
// request, and gives the rest of its head a deadline.
func (c *caller) arrive() {
	if c.stream == io.ReadWriter(c.socket) {
		c.n = c.socket.ReadNow(c.buf[:])
	}
	if wire.End(c.buf[:c.n]) == 0 {
		c.setDeadline(c.now.Add(c.in.headerTimeout))
	}
}

// mayBecomePlain reports whether what has come of a head is worth waiting for
// the rest.
func mayBecomePlain(head []byte) bool {
	if head[0] < 'A' || head[0] > 'Z' {
		return false
	}
	line := bytes.IndexByte(head, '\n')
	return line < 0 || line > 0 && head[line-1] == '\r'
}

// awaitBody reads the rest of a request, if it comes at once.
func (c *caller) awaitBody() bool {
	if c.size > len(c.buf) {
		return false
	}
	if c.n >= c.size {
		return true
	}
	c.setDeadline(time.Now().Add(bodyPause))
	defer func() { c.deadline = time.Time{} }()
	for c.n < c.size {
		n, err := c.stream.Read(c.buf[c.n:])
		c.n += n
		if err != nil {
			return false // if the client has gone, net/http will find out
		}
	}
	return true
}

func (c *caller) setDeadline(t time.Time) {
	c.deadline = t
	_ = c.conn.SetReadDeadline(t) // fails only on a closed connection
}

// finishUp lets the present request end and then the connection. Called by
// another goroutine.
func (c *caller) finishUp() {
	if c.waiting.Load() {
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// abandon ends the connection. Called by another goroutine.
func (c *caller) abandon() { _ = c.conn.Close() }

// watch notices that a client leaves while it waits for an answer.
type watch struct {
	done chan struct{}
	n    int   // bytes that came instead; the client is still there
	err  error // how reading failed
}

// watchClient starts watching: when the client leaves, so does its request.
func (c *caller) watchClient(line *upstreamConn) {
	if c.watch != nil || c.n == len(c.buf) {
		return
	}
	w := &watch{done: make(chan struct{})}
	c.watch = w
	c.setDeadline(time.Time{})
	go func() {
		defer close(w.done)
		if w.n, w.err = c.stream.Read(c.buf[c.n:]); w.err != nil && !isTimeout(w.err) {
			_ = line.Close() // wakes whoever waits for the answer
		}
	}()
}

// unwatch ends watching and reports whether the client is still there.
func (c *caller) unwatch() bool {
	w := c.watch
	if w == nil {
		return true
	}
	c.watch = nil
	c.setDeadline(time.Unix(1, 0))
	<-w.done
	c.deadline = time.Time{}
	c.n += w.n
	return w.err == nil || isTimeout(w.err)
}
