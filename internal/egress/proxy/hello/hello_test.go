package hello_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/egress/proxy/hello"
)

// recorder is a connection that keeps what is written and never answers.
type recorder struct {
	net.Conn
	sent bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error)      { return r.sent.Write(p) }
func (r *recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recorder) Close() error                     { return nil }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

// clientHello returns what a real client sends first.
func clientHello(t testing.TB, name string, change func(*tls.Config)) []byte {
	t.Helper()
	cfg := &tls.Config{ServerName: name, InsecureSkipVerify: true}
	if change != nil {
		change(cfg)
	}
	var wire recorder
	if err := tls.Client(&wire, cfg).Handshake(); err == nil {
		t.Fatal("a handshake with nobody succeeded")
	}
	return wire.sent.Bytes()
}

// read gives a message to a reader in pieces of a size.
func read(message []byte, piece int) (name string, err error, done bool) {
	var r hello.Reader
	for len(message) > 0 && !done {
		n := min(piece, len(message))
		done = r.Write(message[:n])
		message = message[n:]
	}
	name, err = r.Name()
	return name, err, done
}

// records cuts the handshake messages in TLS records into records of a size.
func records(wire []byte, size int) (cut []byte) {
	for len(wire) > 5 {
		length := int(binary.BigEndian.Uint16(wire[3:]))
		for payload := wire[5 : 5+length]; len(payload) > 0; {
			n := min(size, len(payload))
			cut = append(cut, wire[0], wire[1], wire[2], byte(n>>8), byte(n))
			cut = append(cut, payload[:n]...)
			payload = payload[n:]
		}
		wire = wire[5+length:]
	}
	return cut
}

// Attack 12: it does not matter how the ClientHello is cut.
func TestAttack12SplitClientHello(t *testing.T) {
	for what, message := range map[string][]byte{
		"ordinary": clientHello(t, "api.example.com", nil),
		"TLS 1.2":  clientHello(t, "api.example.com", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
		"post-quantum": clientHello(t, "api.example.com", func(c *tls.Config) {
			c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
		}),
		"many protocols": clientHello(t, "api.example.com", func(c *tls.Config) {
			for range 200 {
				c.NextProtos = append(c.NextProtos, strings.Repeat("p", 250))
			}
		}),
	} {
		for _, record := range []int{1 << 14, 1000, 7, 1} {
			wire := records(message, record)
			for _, piece := range []int{len(wire), 1460, 5, 1} {
				name, err, done := read(wire, piece)
				tooLong := len(wire) > hello.MaxSize
				if tooLong && err == nil || !tooLong && (name != "api.example.com" || err != nil || !done) {
					t.Errorf("%s of %d bytes in records of %d and segments of %d: %q, %v, %v",
						what, len(wire), record, piece, name, err, done)
				}
			}
		}
	}
}

func TestNeverFinished(t *testing.T) {
	message := clientHello(t, "api.example.com", nil)
	for n := range len(message) {
		name, err, done := read(message[:n], 100)
		if err == nil || done {
			t.Errorf("%d of %d bytes are enough: %q, %v", n, len(message), name, err)
		}
	}
}

func TestBytesAfterTheHelloAreIgnored(t *testing.T) {
	// Early data follows in records of its own.
	message := append(clientHello(t, "api.example.com", nil), 23, 3, 3, 0, 5, 1, 2, 3, 4, 5)
	if name, err, done := read(message, len(message)); name != "api.example.com" || err != nil || !done {
		t.Errorf("%q, %v, %v", name, err, done)
	}
}

func TestNoName(t *testing.T) {
	for what, message := range map[string][]byte{
		"no SNI":        clientHello(t, "", nil),
		"address":       clientHello(t, "93.184.216.34", nil), // crypto/tls leaves it out
		"no extensions": hand{noExtensions: true}.wire(),
		"others only":   hand{extensions: extension(10, "\x00\x02\x00\x1d")}.wire(),
	} {
		if name, err, done := read(message, len(message)); !errors.Is(err, hello.ErrNoName) || name != "" || !done {
			t.Errorf("%s: %q, %v, %v", what, name, err, done)
		}
	}
}

func TestNotTLS(t *testing.T) {
	for _, text := range []string{
		"", "G", "GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", "\x80\x2e\x01\x00\x02", // the last is SSL 2
		"\x16\x02\x00\x00\x05", "\x15\x03\x01\x00\x02\x02\x00", "\x17\x03\x03\x00\x01a", "\x00\x00",
	} {
		var r hello.Reader
		done := r.Write([]byte(text))
		if _, err := r.Name(); !errors.Is(err, hello.ErrNotTLS) || done != (text != "") || r.IsTLS() {
			t.Errorf("%q: %v, %v, %v", text, err, done, r.IsTLS())
		}
	}
}

func extension(kind int, data string) string {
	return string([]byte{byte(kind >> 8), byte(kind), byte(len(data) >> 8), byte(len(data))}) + data
}

// sni is the server name extension with these names in it.
func sni(names ...string) string {
	list := ""
	for _, name := range names {
		list += string([]byte{0, byte(len(name) >> 8), byte(len(name))}) + name
	}
	return extension(0, string([]byte{byte(len(list) >> 8), byte(len(list))})+list)
}

// hand is a ClientHello made by hand. What is empty gets an ordinary value.
type hand struct {
	version, session, suites, compression, extensions string
	noExtensions                                      bool
	after                                             string // follows the extensions
	kind                                              byte
	lengthOff                                         int // added to the length of the message
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (h hand) wire() []byte {
	body := or(h.version, "\x03\x03") + strings.Repeat("r", 32) + or(h.session, "\x00") +
		or(h.suites, "\x00\x02\x13\x01") + or(h.compression, "\x01\x00")
	if !h.noExtensions {
		body += string([]byte{byte(len(h.extensions) >> 8), byte(len(h.extensions))}) + h.extensions
	}
	body += h.after
	if h.kind == 0 {
		h.kind = 1
	}
	length := len(body) + h.lengthOff
	body = string([]byte{h.kind, byte(length >> 16), byte(length >> 8), byte(length)}) + body
	return append([]byte{22, 3, 1, byte(len(body) >> 8), byte(len(body))}, body...)
}

func TestByHand(t *testing.T) {
	message := hand{extensions: sni("example.com")}.wire()
	if name, err, done := read(message, len(message)); name != "example.com" || err != nil || !done {
		t.Fatalf("%q, %v, %v", name, err, done)
	}
	ech := hand{extensions: extension(0xfe0d, "\x00\x00\x01") + sni("outer.example")}.wire()
	if name, err, _ := read(ech, len(ech)); name != "outer.example" || err != nil {
		t.Errorf("with ECH: %q, %v; want the outer name", name, err)
	}
}

// What more than one reader could understand in more than one way is refused.
func TestMalformed(t *testing.T) {
	for what, message := range map[string][]byte{
		"two names":                 hand{extensions: sni("a.example", "b.example")}.wire(),
		"two extensions":            hand{extensions: sni("a.example") + sni("b.example")}.wire(),
		"another extension twice":   hand{extensions: sni("a.example") + extension(10, "") + extension(10, "")}.wire(),
		"no name in the list":       hand{extensions: sni()}.wire(),
		"empty name":                hand{extensions: sni("")}.wire(),
		"empty extension":           hand{extensions: extension(0, "")}.wire(),
		"name of another type":      hand{extensions: extension(0, "\x00\x04\x01\x00\x01a")}.wire(),
		"list shorter than names":   hand{extensions: extension(0, "\x00\x03\x00\x00\x01a")}.wire(),
		"list longer than names":    hand{extensions: extension(0, "\x00\x05\x00\x00\x01a")}.wire(),
		"bytes after the list":      hand{extensions: extension(0, "\x00\x04\x00\x00\x01ab")}.wire(),
		"name longer than its list": hand{extensions: extension(0, "\x00\x04\x00\x00\x02a")}.wire(),
		"bytes after extensions":    hand{extensions: sni("a.example"), after: "x"}.wire(),
		"half an extension":         hand{extensions: sni("a.example") + "\x00"}.wire(),
		"one byte of extensions":    hand{noExtensions: true, after: "\x00"}.wire(),
		"version 2":                 hand{version: "\x02\x00", extensions: sni("a.example")}.wire(),
		"long session":              hand{session: "\x21" + strings.Repeat("s", 33), extensions: sni("a.example")}.wire(),
		"odd suites":                hand{suites: "\x00\x03\x13\x01\x13", extensions: sni("a.example")}.wire(),
		"no suites":                 hand{suites: "\x00\x00", extensions: sni("a.example")}.wire(),
		"no compression":            hand{compression: "\x00", extensions: sni("a.example")}.wire(),
		"another message":           hand{kind: 2, extensions: sni("a.example")}.wire(),
		"message after it":          hand{extensions: sni("a.example"), lengthOff: -1}.wire(),
		"endless":                   hand{extensions: sni("a.example"), lengthOff: 1 << 20}.wire(),
		"empty record":              {22, 3, 1, 0, 0},
		"record too long":           {22, 3, 1, 0x40, 1},
		"alert in the middle":       append(hand{extensions: sni("a.example"), lengthOff: 10}.wire(), 21, 3, 1, 0, 2, 1, 0),
	} {
		name, err, done := read(message, len(message))
		var bad *hello.MalformedError
		if !errors.As(err, &bad) || name != "" || !done {
			t.Errorf("%s: %q, %v, %v", what, name, err, done)
		}
	}
}

// FuzzHello holds the reader to itself, whatever the pieces, and to crypto/tls:
// when both understand a message they read the same name.
func FuzzHello(f *testing.F) {
	f.Add(clientHello(f, "api.example.com", nil), 3)
	f.Add(clientHello(f, "", nil), 100)
	f.Add(records(clientHello(f, "example.com", nil), 50), 1)
	f.Add(hand{extensions: sni("a.example", "b.example")}.wire(), 5)
	f.Add(hand{extensions: extension(10, "\x00\x02\x00\x1d") + sni("example.com")}.wire(), 5)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 1)
	f.Fuzz(func(t *testing.T, message []byte, piece int) {
		name, err, done := read(message, len(message)+1)
		if piece > 0 {
			again, errAgain, doneAgain := read(message, piece)
			if again != name || done != doneAgain || (err == nil) != (errAgain == nil) {
				t.Errorf("in pieces of %d: %q, %v, %v; at once: %q, %v, %v", piece, again, errAgain, doneAgain, name, err, done)
			}
		}
		if theirs, ok := serverSees(message); ok && done && (err == nil || errors.Is(err, hello.ErrNoName)) && theirs != name {
			t.Errorf("we read %q, crypto/tls %q", name, theirs)
		}
	})
}

// player is a connection that gives a message and takes anything.
type player struct {
	recorder
	*bytes.Reader
}

func (p *player) Read(b []byte) (int, error) { return p.Reader.Read(b) }

// serverSees returns the name that a server of crypto/tls reads, if it
// understands the message.
func serverSees(message []byte) (name string, ok bool) {
	stop := errors.New("seen enough")
	conn := tls.Server(&player{Reader: bytes.NewReader(message)}, &tls.Config{
		MinVersion: tls.VersionTLS10,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, ok = h.ServerName, true
			return nil, stop
		},
	})
	_ = conn.Handshake()
	return name, ok
}

func BenchmarkHello(b *testing.B) {
	message := clientHello(b, "api.example.com", nil)
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		if name, err, _ := read(message, 1460); name == "" {
			b.Fatal(err)
		}
	}
}
