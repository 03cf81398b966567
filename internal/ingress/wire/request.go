package wire

import "bytes"

// Request is a plain request: to the origin, with one Host, with a body of
// known length or none.
type Request struct {
	Fields
	Method, Target, Host []byte
	// Length is that of the body in bytes.
	Length int64
	// Last says that the client wants no further answer on the connection.
	Last bool
	// host is the index of the Host field.
	host int
}

// Parse reads a head, which ends as End says. It returns false when the head is
// not plain; then r holds nothing of use.
func (r *Request) Parse(head []byte) bool {
	if len(head) > MaxHead {
		return false
	}
	line := bytes.IndexByte(head, '\r')
	if !r.parseLine(head[:line]) || head[line+1] != '\n' || !r.parse(head, line+2) {
		return false
	}
	is, ok := r.framing()
	if !ok || !r.findHost() {
		return false
	}
	r.Length, r.Last = max(is.length, 0), is.last
	// Some programs do not expect a body here, and would take it for a request.
	return r.Length == 0 || r.HasBody()
}

// parseLine reads "GET /path?query HTTP/1.1".
func (r *Request) parseLine(line []byte) bool {
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, ok := bytes.CutSuffix(rest, []byte(" HTTP/1.1"))
	if !ok || !isPlainTarget(target) {
		return false
	}
	switch string(method) {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE":
		r.Method, r.Target = method, target
		return true
	}
	return false
}

// HasBody reports whether requests of this method usually have a body.
func (r *Request) HasBody() bool {
	return r.Method[0] == 'P' // POST, PUT, PATCH
}

// isPlainTarget accepts what every reader of URLs leaves as it is.
func isPlainTarget(target []byte) bool {
	if len(target) == 0 || target[0] != '/' {
		return false
	}
	query := false
	for i, c := range target {
		switch {
		case !inTarget[c]:
			return false
		case c == '?':
			query = true
		case c == '%' && !query && (i+2 >= len(target) || !isHex(target[i+1]) || !isHex(target[i+2])):
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// findHost demands exactly one Host.
func (r *Request) findHost() bool {
	r.host = -1
	for i := range r.count {
		if !equal(r.Name(i), "host") {
			continue
		}
		if r.host >= 0 {
			return false
		}
		r.host = i
		r.Host = r.Value(i)
	}
	return r.host >= 0
}

// IsHost reports whether the i-th field is the Host.
func (r *Request) IsHost(i int) bool { return i == r.host }

// Path is the target without its query.
func (r *Request) Path() []byte {
	path, _, _ := bytes.Cut(r.Target, []byte("?"))
	return path
}
