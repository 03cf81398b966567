package proxy

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress/proxy/head"
	"github.com/moat-sandbox/moat/internal/policy"
)

const (
	// headTime is how long a client may take for the head of a request once it
	// has begun it. For the first one Limits.Peek counts.
	headTime = 10 * time.Second
	// idleTime is how long a client may keep a connection without a request.
	// Servers are less patient.
	idleTime = 10 * time.Minute
)

// session is a client's connection on which HTTP/1 is spoken: one request
// after the other, each judged by itself.
type session struct {
	flow      *flow
	conn      net.Conn        // the client's, or TLS over it
	sni       policy.Name     // for whom that was opened; not set without TLS
	in        *bufio.Reader   // from the client; used by one goroutine at a time
	transport *http.Transport // its connections serve this session alone; nil with TLS
	watch     *watch          // looks at the client during an exchange; or nil
	broken    bool            // the client must not take the end for a regular one

	outMu sync.Mutex // interim answers come from other goroutines
	out   *bufio.Writer
	sent  counter // bytes to the client
}

// counter counts what goes to a connection.
type counter struct {
	net.Conn
	bytes int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.bytes += int64(n)
	return n, err
}

// serveHTTP judges a connection by the requests on it.
func (f *flow) serveHTTP() {
	s := newSession(f, f.client)
	if why := s.sniff(); why != "" {
		f.serveOther(s.in, why)
		return
	}
	s.transport = s.newTransport()
	if s.serveOne() {
		s.serveNext()
	} else {
		s.end()
	}
}

// end ends the connection as the last exchange left it.
func (s *session) end() {
	if s.broken {
		reset(s.flow.client)
	} else {
		_ = s.closeWrite() // fails only on a connection that is gone
		linger(s.flow.client)
	}
	s.endWatch()
	if s.transport != nil {
		s.transport.CloseIdleConnections()
	}
}

// sniff reads until it is sure that a request begins. Otherwise it says what
// came instead.
func (s *session) sniff() (why string) {
	for {
		_, err := s.in.Peek(s.in.Buffered() + 1)
		begin, _ := s.in.Peek(s.in.Buffered()) // what is there already
		switch like := head.Sniff(begin); {
		case like == head.HTTP:
			return ""
		case like == head.Other:
			return "this is not an HTTP/1 request"
		case err != nil && isTimeout(err):
			return "no request came within " + s.flow.proxy.limits.Peek.String()
		case err != nil:
			return "the connection ended before a request came"
		}
	}
}

// serveOther judges a connection of another protocol, by address.
func (f *flow) serveOther(in *bufio.Reader, why string) {
	v := f.judge(question{why: why})
	if !v.allow {
		f.refuseRaw(v)
		return
	}
	peeked, _ := in.Peek(in.Buffered())
	f.forward(v, peeked, audit.TCP)
}

// serveOne reads a request and answers it. It reports whether another one may
// follow.
func (s *session) serveOne() (more bool) {
	x := &exchange{session: s, began: time.Now(), sentBefore: s.sent.bytes}
	raw, err := head.Read(s.in)
	x.received = int64(len(raw))
	if err == nil {
		x.request, err = head.Parse(raw)
	}
	_ = s.flow.client.SetReadDeadline(time.Time{})
	if err != nil {
		var malformed *head.Error
		if !errors.As(err, &malformed) {
			malformed = brokenOff(err)
		}
		return x.refuse(malformed)
	}
	return x.serve()
}

// brokenOff is what a head is that does not come to its end.
func brokenOff(err error) *head.Error {
	if isTimeout(err) {
		return &head.Error{Status: http.StatusRequestTimeout, What: "the head of the request did not come in time"}
	}
	return &head.Error{Status: http.StatusBadRequest, What: "the connection ended within the head of the request"}
}

// next waits until the client begins another request.
func (s *session) next() bool {
	_ = s.flow.client.SetReadDeadline(time.Now().Add(idleTime))
	s.endWatch()
	if _, err := s.in.Peek(1); err != nil {
		return false
	}
	_ = s.flow.client.SetReadDeadline(time.Now().Add(headTime))
	return true
}
