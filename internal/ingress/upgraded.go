package ingress

import (
	"bufio"
	"errors"
	"io"
	"net"
)

// clientConn is an upgraded connection. What a client sent without waiting for
// the answer sits in the server's buffer.
type clientConn struct {
	net.Conn
	early   *bufio.Reader
	meter   *meter
	buffers *bufferPool
}

func (c *clientConn) Read(p []byte) (n int, err error) {
	if early := c.early.Buffered(); early > 0 {
		n, err = c.early.Read(p[:min(early, len(p))])
	} else {
		n, err = c.Conn.Read(p)
	}
	c.meter.toApp(n)
	return n, err
}

func (c *clientConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.meter.toClient(n)
	return n, err
}

// CloseWrite passes half-closing on, which Conn's type does not promise.
func (c *clientConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// WriteTo implements io.WriterTo, and ReadFrom io.ReaderFrom, so that io.Copy
// needs no large buffer while nothing is said.
func (c *clientConn) WriteTo(to io.Writer) (int64, error) { return c.pump(to, c.Read) }

// ReadFrom is the other direction.
func (c *clientConn) ReadFrom(from io.Reader) (int64, error) { return c.pump(c, from.Read) }

// smallBuffer is what a silent direction of an upgraded connection holds.
const smallBuffer = 512 // bytes

// pump copies until the end. It borrows a large buffer for as long as there is
// much to copy.
func (c *clientConn) pump(to io.Writer, read func([]byte) (int, error)) (total int64, err error) {
	small := make([]byte, smallBuffer)
	buf := small
	defer func() {
		if len(buf) > smallBuffer {
			c.buffers.Put(buf)
		}
	}()
	for {
		n, err := read(buf)
		if n > 0 {
			written, err := to.Write(buf[:n])
			total += int64(written)
			if err != nil {
				return total, err
			}
		}
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		case n == smallBuffer && len(buf) == smallBuffer:
			buf = c.buffers.Get()
		case n < smallBuffer && len(buf) > smallBuffer:
			c.buffers.Put(buf)
			buf = small
		}
	}
}
