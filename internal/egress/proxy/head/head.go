// Package head reads the head of an HTTP/1 request: everything before the
// body.
//
// It is strict where leniency lets two readers see two requests in the same
// bytes (request smuggling). Line ends are CRLF, fields are not folded, the
// length of the body is given in one way or not at all, and the target and the
// Host field name the same authority. What is ambiguous is refused, and what
// is accepted is written anew by whoever sends it on.
package head

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
)

// MaxSize is how long a head may be, in bytes.
const MaxSize = 64 << 10

// Chunked is the Length of a body that comes in chunks.
const Chunked = -1

// Request is the head of a request.
type Request struct {
	Method string
	// Target is a path with an optional query as the client sent it, or "*".
	Target string
	// Minor is the minor version: 0 or 1.
	Minor int
	// Authority is for whom the request is. HTTP/1.0 knows requests that do not
	// say it.
	Authority Authority
	// Header holds all fields but Host, Content-Length and Transfer-Encoding.
	Header http.Header
	// Length is the length of the body in bytes, or Chunked.
	Length int64
	// Trailers are the names of the fields that follow a chunked body.
	Trailers []string
	// Continue says that the client waits for "100 Continue" with the body.
	Continue bool
}

// Error says why a head is refused. Whatever follows on the connection cannot
// be understood any more.
type Error struct {
	Status int // of the answer that tells the client
	What   string
}

// Error implements error.
func (e *Error) Error() string { return e.What }

func bad(format string, args ...any) error {
	return &Error{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// Read reads a head up to and including the empty line that ends it. What it
// returns is no longer than MaxSize, and may not be well-formed. The error is
// an *Error when that is certain already, otherwise that of the reader.
func Read(in *bufio.Reader) ([]byte, error) {
	var head []byte
	for start := 0; ; start = len(head) {
		for {
			part, err := in.ReadSlice('\n')
			if len(head)+len(part) > MaxSize {
				return nil, &Error{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the head of the request is longer than %d bytes", MaxSize)}
			}
			head = append(head, part...)
			if err == nil {
				break
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				return nil, err
			}
		}
		switch line := head[start:]; {
		case len(line) < 2 || line[len(line)-2] != '\r':
			return nil, bad("a line ends in LF without CR")
		case len(line) > 2:
		case start == 0:
			return nil, bad("an empty line stands before the request")
		default:
			return head, nil
		}
	}
}

// Likeness is whether bytes look like the beginning of a request.
type Likeness uint8

// The answers of Sniff.
const (
	Undecided Likeness = iota // more bytes are needed
	Other
	HTTP
)

// longestMethod is longer than all methods there are (RFC 3253 has
// BASELINE-CONTROL).
const longestMethod = 32

// Sniff tells HTTP/1 from other protocols by the first bytes of a connection.
// HTTP/2, which begins with a request of its own, is another protocol.
func Sniff(b []byte) Likeness {
	for i, c := range b {
		switch {
		case c == ' ' && i > 0 && string(b[:i]) != "PRI":
			return HTTP
		case !isToken(c) || i >= longestMethod:
			return Other
		}
	}
	return Undecided
}
