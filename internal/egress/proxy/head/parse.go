package head

import (
	"bytes"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// Parse reads a complete head, as Read returns it. The error is an *Error.
func Parse(head []byte) (*Request, error) {
	first, rest, ok := cutLine(head)
	if !ok {
		return nil, bad("the head of the request is empty")
	}
	r := &Request{Header: make(http.Header)}
	target, err := r.parseFirst(first)
	if err != nil {
		return nil, err
	}
	var f framing
	for {
		line, more, ok := cutLine(rest)
		switch {
		case !ok:
			return nil, bad("the head of the request has no end")
		case len(line) == 0 && len(more) > 0:
			return nil, bad("something follows the end of the head")
		case len(line) == 0:
			if err := r.finish(target, &f); err != nil {
				return nil, err
			}
			return r, nil
		}
		if err := r.parseField(line, &f); err != nil {
			return nil, err
		}
		rest = more
	}
}

// cutLine takes a line that ends in CRLF from the front.
func cutLine(b []byte) (line, rest []byte, ok bool) { return bytes.Cut(b, []byte("\r\n")) }

// parseFirst reads "METHOD TARGET VERSION" and returns the target.
func (r *Request) parseFirst(line []byte) (target string, err error) {
	method, rest, _ := bytes.Cut(line, []byte(" "))
	dest, version, ok := bytes.Cut(rest, []byte(" "))
	switch {
	case !ok:
		return "", bad("the first line is not of the form METHOD TARGET VERSION")
	case !isTokens(method) || len(method) > longestMethod:
		return "", bad("the method %.40q is none", method)
	}
	switch string(version) {
	case "HTTP/1.0":
	case "HTTP/1.1":
		r.Minor = 1
	default:
		if _, _, known := http.ParseHTTPVersion(string(version)); known {
			return "", &Error{http.StatusHTTPVersionNotSupported, "only HTTP/1.0 and HTTP/1.1 are understood, not " + string(version)}
		}
		return "", bad("the version %.40q is none", version)
	}
	if err := checkTarget(string(dest)); err != nil {
		return "", err
	}
	r.Method = string(method)
	return string(dest), nil
}

func checkTarget(target string) error {
	for _, c := range []byte(target) {
		if c <= ' ' || c == 0x7f || c == '#' {
			return bad("the target has a byte %#02x in it", c)
		}
	}
	return nil
}

// CheckPath holds what HTTP/2 has in place of the target to the same rules. It
// is never a whole URL there. The error is an *Error.
func CheckPath(method, path string) error {
	if err := checkTarget(path); err != nil {
		return err
	}
	if !strings.HasPrefix(path, "/") && (path != "*" || method != http.MethodOptions) {
		return bad("the target %.40q is not a path", path)
	}
	return nil
}

// framing collects the fields that say where the request goes and how long it
// is. They must not come twice.
type framing struct{ host, length, encoding []string }

// parseField reads one of the fields.
func (r *Request) parseField(line []byte, f *framing) error {
	name, value, err := splitField(line)
	if err != nil {
		return err
	}
	switch key := textproto.CanonicalMIMEHeaderKey(name); key {
	case "Host":
		f.host = append(f.host, value)
	case "Content-Length":
		f.length = append(f.length, value)
	case "Transfer-Encoding":
		f.encoding = append(f.encoding, value)
	case "Content_length", "Transfer_encoding":
		// Servers that hand fields to programs as variables take these for the
		// ones with a dash.
		return bad("the field name %s is too close to another one", name)
	default:
		r.Header[key] = append(r.Header[key], value)
	}
	return nil
}

// ParseField reads "NAME: VALUE" with its line end, as it stands in a head or
// after a body in chunks.
func ParseField(line []byte) (name, value string, err error) {
	field, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		return "", "", bad("a line ends in LF without CR")
	}
	return splitField(field)
}

func splitField(line []byte) (name, value string, err error) {
	if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
		return "", "", bad("a field is folded over two lines")
	}
	before, after, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isTokens(before) {
		return "", "", bad("the field name %.40q is none", before)
	}
	after = bytes.Trim(after, " \t")
	for _, c := range after {
		if c < ' ' && c != '\t' || c == 0x7f {
			return "", "", bad("the field %.40s has a byte %#02x in it", before, c)
		}
	}
	return string(before), string(after), nil
}

// finish looks at the fields together.
func (r *Request) finish(target string, f *framing) error {
	if err := r.setLength(f); err != nil {
		return err
	}
	if err := r.setAuthority(target, f.host); err != nil {
		return err
	}
	if err := r.setTrailers(); err != nil {
		return err
	}
	switch expect := r.Header["Expect"]; {
	case len(expect) == 0:
	case len(expect) == 1 && strings.EqualFold(expect[0], "100-continue"):
		r.Continue = r.Minor >= 1 && r.Length != 0
	default:
		return &Error{http.StatusExpectationFailed, "the only expectation that is understood is 100-continue"}
	}
	return nil
}

// setLength finds out how long the body is: by one of two fields, given once.
func (r *Request) setLength(f *framing) error {
	switch {
	case len(f.length) > 1 || len(f.encoding) > 1 || len(f.length)+len(f.encoding) > 1:
		return bad("the length of the body is given more than once")
	case len(f.encoding) == 1 && r.Minor == 0:
		return bad("HTTP/1.0 knows no Transfer-Encoding")
	case len(f.encoding) == 1 && !strings.EqualFold(f.encoding[0], "chunked"):
		return &Error{http.StatusNotImplemented, "the only Transfer-Encoding that is understood is chunked"}
	case len(f.encoding) == 1:
		r.Length = Chunked
	case len(f.length) == 1:
		n, err := strconv.ParseUint(f.length[0], 10, 63)
		if err != nil || !isDigits(f.length[0]) {
			return bad("the Content-Length %.40q is none", f.length[0])
		}
		r.Length = int64(n)
	}
	return nil
}

// setTrailers finds out which fields follow the body.
func (r *Request) setTrailers() error {
	for _, list := range r.Header["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			key := textproto.CanonicalMIMEHeaderKey(strings.Trim(name, " \t"))
			switch {
			case !isTokens([]byte(key)):
				return bad("the trailer name %.40q is none", key)
			case !CanTrail(key):
				return bad("the field %s cannot be a trailer", key)
			}
			r.Trailers = append(r.Trailers, key)
		}
	}
	if r.Length != Chunked {
		r.Trailers = nil
	}
	return nil
}

// CanTrail reports whether a field, by its canonical name, may follow a body.
// Those that say where a request goes, or how it is to be read, may not.
func CanTrail(key string) bool {
	switch key {
	case "Host", "Content-Length", "Transfer-Encoding", "Trailer", "Connection", "Upgrade", "Te", "Expect",
		"Authorization", "Cookie", "Content-Encoding", "Content-Type", "Content-Range":
		return false
	}
	return true
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func isTokens(b []byte) bool {
	for _, c := range b {
		if !isToken(c) {
			return false
		}
	}
	return len(b) > 0
}

// isToken reports whether a byte may stand in a method or a field name (RFC
// 9110, section 5.6.2).
func isToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
