package dial_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/egress/dial"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
)

// script is a connection to a proxy whose answers are settled beforehand.
type script struct {
	net.Conn // nil: nothing else is used
	answers  *strings.Reader
	sent     strings.Builder
}

func (s *script) Read(p []byte) (int, error)  { return s.answers.Read(p) }
func (s *script) Write(p []byte) (int, error) { return s.sent.Write(p) }
func (s *script) SetDeadline(time.Time) error { return nil }

// FuzzSOCKS has a proxy answer anything. Only one that has agreed to a password
// is sent it, only one that says so has connected, and what follows belongs to
// the destination.
func FuzzSOCKS(f *testing.F) {
	for _, answers := range []string{
		"\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00rest", "\x05\x02\x01\x00\x05\x00\x00\x03\x01a\x00\x50", "\x05\xff",
		"\x05\x02\x01\x01", "\x05\x00\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00", "HTTP/1.1 200 OK\r\n\r\n", "",
	} {
		f.Add(answers, true)
	}
	f.Fuzz(func(t *testing.T, answers string, named bool) {
		s := &script{answers: strings.NewReader(answers)}
		name := ""
		if named {
			name = "example.com"
		}
		err := dial.ConnectSOCKS(t.Context(), s, policy.Upstream{Username: "someone", Password: secret.New(password)}, name, netip.MustParseAddrPort("93.184.216.34:443"))
		if strings.Contains(s.sent.String(), password) && !strings.HasPrefix(answers, "\x05\x02") {
			t.Error("the password was sent without being asked for")
		}
		if err != nil {
			if strings.Contains(err.Error(), password) {
				t.Errorf("the error shows the password: %v", err)
			}
			return
		}
		reply, loggedIn := strings.CutPrefix(answers, "\x05\x02\x01\x00")
		if !loggedIn {
			reply = strings.TrimPrefix(answers, "\x05\x00")
		}
		rest, _ := io.ReadAll(s.answers)
		if !strings.HasPrefix(reply, "\x05\x00") || !strings.HasSuffix(answers, string(rest)) {
			t.Errorf("%q is taken for a connection, with %q after it", answers, rest)
		}
	})
}
