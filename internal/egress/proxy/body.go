package proxy

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/egress/proxy/head"
)

// body is the body of a request, as the transport reads it.
type body struct {
	exchange *exchange
	from     io.Reader
	trailer  http.Header   // filled in at the end; nil without announced trailers
	closed   chan struct{} // by who was given the body
	close    sync.Once
	given    bool // to the transport, which closes it

	mu    sync.Mutex
	ended func() // called at the end of the body; nil if nobody wants to know
	bytes int64  // read so far
	err   error  // how it has ended; io.EOF if well, nil if it has not
}

// newBody returns nil for a request without a body.
func (x *exchange) newBody() *body {
	b := &body{exchange: x, closed: make(chan struct{})}
	switch length := x.request.Length; {
	case length == 0:
		return nil
	case length != head.Chunked:
		b.from = &sized{x.in, length}
	default:
		if len(x.request.Trailers) > 0 {
			b.trailer = make(http.Header)
			for _, name := range x.request.Trailers {
				b.trailer[name] = nil
			}
		}
		b.from = &chunked{in: x.in, chunks: httputil.NewChunkedReader(x.in), trailer: b.trailer}
	}
	return b
}

// send says that the transport gets the body. Ended is called when all of it
// is read.
func (b *body) send(ended func()) { b.given, b.ended = true, ended }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.exchange.wantBody()
	n, err := b.from.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes += int64(n)
	if err != nil && b.err == nil {
		b.err = err
		if errors.Is(err, io.EOF) && b.ended != nil {
			b.ended()
		}
	}
	return n, err
}

// Close implements io.Closer. The rest of the body stays where it is.
func (b *body) Close() error {
	b.close.Do(func() { close(b.closed) })
	return nil
}

func (b *body) size() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// end returns how the body has ended, nil if it has not.
func (b *body) end() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// failed reports whether the client sent a body that is none.
func (b *body) failed() bool {
	err := b.end()
	return err != nil && !errors.Is(err, io.EOF)
}

// settleBody makes sure, when the answer is given, that nobody reads the body
// any more. It reports whether the next request can be found after it.
func (x *exchange) settleBody() bool {
	b := x.body
	if b == nil {
		return true
	}
	held := x.request.Continue && !x.continued // and nobody asks for it now
	if b.given {
		late := time.AfterFunc(lingerTime, x.stopReading)
		defer late.Stop()
		if held {
			x.stopReading()
		}
		<-b.closed
	}
	if err := b.end(); err != nil {
		return errors.Is(err, io.EOF)
	}
	if !x.keep || held {
		return false // a body that was not asked for may come or not
	}
	b.ended = nil
	_ = x.flow.client.SetReadDeadline(time.Now().Add(lingerTime))
	_, err := io.CopyN(io.Discard, b, lingerBytes)
	return errors.Is(err, io.EOF)
}

// sized is a body of known length.
type sized struct {
	in   *bufio.Reader
	left int64
}

func (s *sized) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.in.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	switch {
	case s.left == 0:
		return n, io.EOF
	case errors.Is(err, io.EOF):
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

// chunked is a body in chunks, with the fields that follow it.
type chunked struct {
	in      *bufio.Reader
	chunks  io.Reader
	trailer http.Header
	done    bool
}

func (c *chunked) Read(p []byte) (int, error) {
	if c.done {
		return 0, io.EOF
	}
	n, err := c.chunks.Read(p)
	if errors.Is(err, io.EOF) {
		c.done = true
		if err = c.readTrailer(); err == nil {
			err = io.EOF
		}
	}
	return n, err
}

// maxTrailers is how many fields may follow a body.
const maxTrailers = 100

// readTrailer reads the fields up to the empty line. Those that were not
// announced are left out.
func (c *chunked) readTrailer() error {
	for range maxTrailers {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return noEOF(err)
		}
		if string(line) == "\r\n" {
			return nil
		}
		name, value, err := head.ParseField(line)
		if err != nil {
			return err
		}
		key := textproto.CanonicalMIMEHeaderKey(name)
		if _, announced := c.trailer[key]; announced {
			c.trailer[key] = append(c.trailer[key], value)
		}
	}
	return errors.New("too many fields follow the body")
}

// noEOF keeps the end of the connection from looking like that of the body.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
