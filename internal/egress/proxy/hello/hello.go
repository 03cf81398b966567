// Package hello reads the name that a TLS client asks for out of its first
// message, the ClientHello.
//
// It believes nothing: a message that is not exactly what RFC 8446 and RFC 6066
// describe is malformed, so that no server can read another name out of it
// than we do. Only the outer name counts. A ClientHello with an encrypted one
// in it (ECH) is judged by the name that everybody can read, which is that of
// whoever is able to decrypt it.
package hello

import (
	"errors"
	"fmt"
)

// ErrNoName says that a ClientHello is fine and names no server.
var ErrNoName = errors.New("the client names no server")

// MalformedError says what is wrong with a ClientHello.
type MalformedError struct{ What string }

// Error implements error.
func (e *MalformedError) Error() string { return "malformed TLS ClientHello: " + e.What }

func malformed(format string, args ...any) error {
	return &MalformedError{fmt.Sprintf(format, args...)}
}

// serverName reads the body of a ClientHello message and returns the name in
// it as the client sent it.
func serverName(body []byte) (string, error) {
	s := scanner{rest: body}
	version := s.take(2)
	s.take(32) // random
	session := s.vector(1)
	suites := s.vector(2)
	compression := s.vector(1)
	switch {
	case s.short:
		return "", malformed("it ends in the middle of a field")
	case version[0] != 3:
		return "", malformed("version %#x", version)
	case len(session) > 32:
		return "", malformed("a session id of %d bytes", len(session))
	case len(suites) == 0 || len(suites)%2 != 0:
		return "", malformed("%d bytes of cipher suites", len(suites))
	case len(compression) == 0:
		return "", malformed("no compression method")
	case s.done():
		return "", ErrNoName // no extensions, as in the days of SSL
	}
	extensions := s.vector(2)
	if s.short || !s.done() {
		return "", malformed("the extensions do not end where the message does")
	}
	return findName(extensions)
}

// serverNameExtension and nameTypeHost are numbers of RFC 6066, section 3.
const (
	serverNameExtension = 0
	nameTypeHost        = 0
)

// findName looks for the name among the extensions. It looks at all of them:
// none may come twice, or two readers could see two names.
func findName(extensions []byte) (name string, err error) {
	var seen [1 << 16 / 64]uint64
	err = ErrNoName
	for s := (scanner{rest: extensions}); !s.done(); {
		kind := s.number(2)
		data := s.vector(2)
		if s.short {
			return "", malformed("an extension is longer than all of them")
		}
		if seen[kind/64]&(1<<(kind%64)) != 0 {
			return "", malformed("extension %d comes twice", kind)
		}
		seen[kind/64] |= 1 << (kind % 64)
		if kind != serverNameExtension {
			continue
		}
		if name, err = readName(data); err != nil {
			return "", err
		}
	}
	return name, err
}

// readName reads the data of the extension: a list with one host name in it.
func readName(data []byte) (string, error) {
	outer := scanner{rest: data}
	list := scanner{rest: outer.vector(2)}
	kind := list.number(1)
	name := list.vector(2)
	switch {
	case outer.short || list.short || !outer.done() || !list.done():
		return "", malformed("the server name extension is not a list of one name")
	case kind != nameTypeHost:
		return "", malformed("a server name of type %d", kind)
	case len(name) == 0:
		return "", malformed("an empty server name")
	}
	return string(name), nil
}

// scanner takes fields from the front of a message. Once one does not fit it
// is short, and gives nothing any more.
type scanner struct {
	rest  []byte
	short bool
}

func (s *scanner) done() bool { return len(s.rest) == 0 }

func (s *scanner) take(n int) []byte {
	if s.short || n > len(s.rest) {
		s.short, s.rest = true, nil
		return nil
	}
	taken := s.rest[:n]
	s.rest = s.rest[n:]
	return taken
}

// number reads an unsigned integer of so many bytes; 0 if it does not fit.
func (s *scanner) number(bytes int) (n int) {
	for _, b := range s.take(bytes) {
		n = n<<8 | int(b)
	}
	return n
}

// vector reads a field that begins with its length, in so many bytes.
func (s *scanner) vector(lengthBytes int) []byte { return s.take(s.number(lengthBytes)) }
