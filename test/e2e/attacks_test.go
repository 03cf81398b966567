package e2e

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/test/harness"
)

// The tests in attacks_*.go try, from inside a sandbox and against the real
// server, what is known to get past filters of this kind. Each is named after
// its attack. The packages hold many more variants of most of them.

// attack is one of them.
type attack struct {
	name string
	try  func(t *testing.T, s *harness.Server, box *harness.Box)
}

// tryAll runs attacks from one sandbox, and looks after each whether anything
// has got to the attacker's machine.
func tryAll(t *testing.T, s *harness.Server, box *harness.Box, attacks []attack) {
	t.Helper()
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			before := reached(s, attacker) + reached(s, attacker6)
			a.try(t, s, box)
			if got := reached(s, attacker) + reached(s, attacker6) - before; got != 0 {
				t.Errorf("%d packets got to the attacker", got)
			}
		})
	}
}

// The attacker's machine, evil.example.
const (
	attacker  = "45.60.70.80"
	attacker6 = "2a02:6b8::80"
)

// firstLine sends raw bytes to a port of the attacker's, which the proxy
// answers for, and returns the first line of what is answered, or the error.
func firstLine(t *testing.T, box *harness.Box, port, raw string) string {
	t.Helper()
	conn := mustDial(t, box, "tcp:"+net.JoinHostPort(attacker, port))
	if _, err := io.WriteString(conn, raw); err != nil {
		return err.Error()
	}
	line, err := conn.in.ReadString('\n')
	if err != nil && line == "" {
		_, err = conn.Read(make([]byte, 1))
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// clientHello is a TLS message with a server name of any bytes.
func clientHello(name string) string {
	n := len(name)
	sni := string([]byte{0, 0, byte((n + 5) >> 8), byte(n + 5), byte((n + 3) >> 8), byte(n + 3), 0, byte(n >> 8), byte(n)}) + name
	body := "\x03\x03" + strings.Repeat("r", 32) + "\x00" + "\x00\x02\x13\x01" + "\x01\x00" + string([]byte{byte(len(sni) >> 8), byte(len(sni))}) + sni
	body = string([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}) + body
	return string([]byte{22, 3, 1, byte(len(body) >> 8), byte(len(body))}) + body
}

// accessDenied is the alert that refuses TLS.
const accessDenied = "\x15\x03\x03\x00\x02\x02\x31"

// expectAlert sends raw bytes to the attacker's port 443 and expects the alert
// and nothing else.
func expectAlert(t *testing.T, box *harness.Box, what, raw string) {
	t.Helper()
	if got, err := mustDial(t, box, "tcp:"+attacker+":443").send(t, raw); got != accessDenied || err != nil {
		t.Errorf("%s: got %q and %v, want the alert access_denied", what, got, err)
	}
}
