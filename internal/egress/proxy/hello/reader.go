package hello

import "errors"

// MaxSize is how many bytes a client may send until its ClientHello is
// complete, the headers of the records around it included.
const MaxSize = 64 << 10

// ErrNotTLS says that the first bytes do not begin a TLS connection.
var ErrNotTLS = errors.New("this is not TLS")

// Numbers of RFC 8446, sections 4 and 5.1.
const (
	recordHeader     = 5
	maxRecord        = 1 << 14
	typeHandshake    = 22
	handshakeHeader  = 4
	typeClientHello  = 1
	versionMajor     = 3
	recordLengthByte = 3 // place of the length in the header
)

// Reader puts a ClientHello together from what arrives, however it is cut into
// TCP segments and TLS records. The work is proportional to the bytes. Its zero
// value is ready to use.
type Reader struct {
	header  [recordHeader]byte // of the current record
	have    int                // bytes of header
	left    int                // bytes of the record still to come
	message []byte             // handshake message so far, without record headers
	size    int                // bytes written
	secure  bool               // the first record header was one of TLS
	name    string
	err     error
	done    bool
}

// Write takes the next bytes from the client. It returns true when no more are
// needed: Name then has the result.
func (r *Reader) Write(p []byte) (done bool) {
	for len(p) > 0 && !r.done {
		if r.left == 0 {
			p = r.readHeader(p)
			continue
		}
		n := min(r.left, len(p))
		r.message = append(r.message, p[:n]...)
		r.left -= n
		r.size += n
		p = p[n:]
		r.check()
	}
	return r.done
}

// Name returns the name that the client asks for, as it sent it. The error is
// ErrNoName, ErrNotTLS or a *MalformedError. As long as Write wants more it is
// a *MalformedError, too: a ClientHello that ends there is not complete.
func (r *Reader) Name() (string, error) {
	switch {
	case r.done:
		return r.name, r.err
	case r.size == 0:
		return "", ErrNotTLS
	}
	return "", malformed("it is not complete")
}

// IsTLS reports whether what was written so far begins as TLS does.
func (r *Reader) IsTLS() bool { return r.secure }

func (r *Reader) finish(name string, err error) { r.name, r.err, r.done = name, err, true }

// readHeader takes bytes of a record header, and returns what follows.
func (r *Reader) readHeader(p []byte) []byte {
	n := copy(r.header[r.have:], p)
	r.have += n
	r.size += n
	switch {
	case r.header[0] != typeHandshake, r.have > 1 && r.header[1] != versionMajor:
		if r.secure {
			r.finish("", malformed("a record of type %d of version %d is in the middle of it", r.header[0], r.header[1]))
		} else {
			r.finish("", ErrNotTLS)
		}
		return nil
	case r.have < recordHeader:
		return nil
	}
	r.secure = true
	r.have = 0
	r.left = int(r.header[recordLengthByte])<<8 | int(r.header[recordLengthByte+1])
	if r.left == 0 || r.left > maxRecord {
		r.finish("", malformed("a record of %d bytes", r.left))
	}
	if r.size > MaxSize {
		r.finish("", malformed("it is longer than %d bytes", MaxSize))
	}
	return p[n:]
}

// check looks whether the message is complete, and reads it if it is.
func (r *Reader) check() {
	if r.message[0] != typeClientHello {
		r.finish("", malformed("the first message is of type %d", r.message[0]))
		return
	}
	length := -1 // not known yet
	if len(r.message) >= handshakeHeader {
		length = int(r.message[1])<<16 | int(r.message[2])<<8 | int(r.message[3])
	}
	switch have := len(r.message) - handshakeHeader; {
	case length > MaxSize || r.size > MaxSize:
		r.finish("", malformed("it is longer than %d bytes", MaxSize))
	case length < 0 || have < length:
	case have > length || r.left > 0:
		r.finish("", malformed("another message follows in the same record"))
	default:
		r.finish(serverName(r.message[handshakeHeader:]))
	}
}
