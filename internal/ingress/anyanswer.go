package ingress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
)

// maxEarly bounds the informational answers before the final one.
const maxEarly = 16

var errNoAnswer = errors.New("no valid answer")

// hopHeaders are about one connection alone, beside those that Connection names.
var hopHeaders = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// relayAny passes on an answer that is not plain, of which some bytes have come:
// chunked ones, those that end with the connection, and everything that
// net/http can make sense of.
func (c *caller) relayAny(line *upstreamConn, early []byte) outcome {
	limit := &io.LimitedReader{R: io.MultiReader(bytes.NewReader(early), lineReader{c, line})}
	in := bufio.NewReader(limit)
	answer, err := c.readAnswer(in, limit)
	if err == nil && !c.begin(answer.StatusCode) {
		err = errRefused
	}
	if err != nil {
		_ = line.Close()
		return c.fail(err)
	}
	chunked, err := c.sendHead(answer)
	if err == nil {
		err = c.sendBody(answer, chunked)
	}
	if err != nil {
		_ = line.Close()
		return c.breakOff()
	}
	return c.end(!answer.Close && in.Buffered() == 0)
}

// lineReader reads an answer as hear does.
type lineReader struct {
	caller *caller
	line   *upstreamConn
}

func (r lineReader) Read(p []byte) (int, error) { return r.caller.hear(r.line, p) }

// readAnswer reads the final head, and passes on the informational ones before
// it.
func (c *caller) readAnswer(in *bufio.Reader, limit *io.LimitedReader) (*http.Response, error) {
	asked := &http.Request{Method: string(c.request.Method)}
	for range maxEarly {
		limit.N = maxAnswerHeader
		answer, err := http.ReadResponse(in, asked)
		switch {
		case err != nil:
			return nil, err
		case answer.StatusCode == http.StatusSwitchingProtocols || answer.StatusCode < 100:
			return nil, errNoAnswer // to no question of ours
		case answer.StatusCode >= 200:
			limit.N = math.MaxInt64
			return answer, nil
		case answer.StatusCode != http.StatusContinue:
			var out bytes.Buffer
			writeHead(&out, answer)
			out.WriteString("\r\n")
			if _, err := c.stream.Write(out.Bytes()); err != nil {
				return nil, err
			}
		}
	}
	return nil, errNoAnswer
}

// sendHead writes a final head. It reports whether the body must be chunked.
func (c *caller) sendHead(answer *http.Response) (chunked bool, err error) {
	empty := c.request.Method[0] == 'H' || answer.StatusCode == http.StatusNoContent || answer.StatusCode == http.StatusNotModified
	chunked = !empty && answer.ContentLength < 0
	var out bytes.Buffer
	writeHead(&out, answer)
	if chunked {
		out.WriteString("Transfer-Encoding: chunked\r\n")
		for name := range answer.Trailer {
			out.WriteString("Trailer: " + name + "\r\n")
		}
	}
	if c.request.Last {
		out.WriteString("Connection: close\r\n")
	}
	out.WriteString("\r\n")
	_, err = c.stream.Write(out.Bytes())
	return chunked, err
}

// writeHead writes the status line and the header without the last line end.
func writeHead(out *bytes.Buffer, answer *http.Response) {
	for _, named := range answer.Header["Connection"] {
		for name := range strings.SplitSeq(named, ",") {
			// The length is no matter of the connection, whatever an app says.
			if name = strings.TrimSpace(name); !strings.EqualFold(name, "Content-Length") {
				answer.Header.Del(name)
			}
		}
	}
	if answer.StatusCode < 200 || answer.StatusCode == http.StatusNoContent {
		answer.Header.Del("Content-Length") // of a body that never comes
	}
	for _, name := range hopHeaders {
		answer.Header.Del(name)
	}
	fmt.Fprintf(out, "HTTP/1.1 %03d %s\r\n", answer.StatusCode, http.StatusText(answer.StatusCode))
	_ = answer.Header.Write(out) // a bytes.Buffer takes everything
}

// sendBody passes a body on as it comes.
func (c *caller) sendBody(answer *http.Response, chunked bool) error {
	buf := c.in.buffers.Get()
	defer c.in.buffers.Put(buf)
	const frame = 16 // room for the size of a chunk, and more than for its end
	for {
		n, err := answer.Body.Read(buf[frame : len(buf)-frame])
		if n > 0 {
			out := buf[frame : frame+n]
			if chunked {
				size := fmt.Appendf(nil, "%x\r\n", n)
				out = buf[frame-len(size) : frame+n]
				copy(out, size)
				out = append(out, "\r\n"...)
			}
			if _, err := c.stream.Write(out); err != nil {
				return err
			}
			c.exchange.meter.toClient(n)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if !chunked {
		return nil
	}
	var end bytes.Buffer
	end.WriteString("0\r\n")
	_ = answer.Trailer.Write(&end) // a bytes.Buffer takes everything
	end.WriteString("\r\n")
	_, err := c.stream.Write(end.Bytes())
	return err
}
