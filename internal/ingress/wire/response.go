package wire

import "bytes"

// Response is a plain response: final, and with a body of known length or none.
type Response struct {
	Fields
	Status int
	// Start is the status line with its line end.
	Start []byte
	// Length is that of the body in bytes. An answer to HEAD has none, whatever
	// its fields say.
	Length int64
	// Last says that nothing else will come on the connection.
	Last bool
}

// Parse reads a head, which ends as End says, as an answer to a request with
// HEAD or another method. It returns false when the head is not plain.
func (r *Response) Parse(head []byte, toHEAD bool) bool {
	if len(head) > MaxHead {
		return false
	}
	end := bytes.IndexByte(head, '\r') + 2
	if head[end-1] != '\n' || !r.parseLine(head[:end-2]) || !r.parse(head, end) {
		return false
	}
	is, ok := r.framing()
	if !ok {
		return false
	}
	r.Start, r.Length, r.Last = head[:end], is.length, is.last
	switch {
	case r.Status == 204 && is.length > 0:
		return false // a body where none may be
	case toHEAD || r.Status == 204 || r.Status == 304:
		r.Length = 0
	}
	return r.Length >= 0
}

// parseLine reads "HTTP/1.1 200 OK".
func (r *Response) parseLine(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("HTTP/1.1 "))
	if !ok || len(rest) < 4 || rest[3] != ' ' {
		return false
	}
	r.Status = 0
	for _, c := range rest[:3] {
		if c < '0' || c > '9' {
			return false
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	for _, c := range rest[4:] {
		if !inValue[c] {
			return false
		}
	}
	return 200 <= r.Status && r.Status <= 599
}
