package policy_test

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/policy"
)

// TestScripts runs testdata/*.policy, the specification of the engine.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.policy")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts found (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".policy"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := script{t: t, file: file}
			lines := bufio.NewScanner(strings.NewReader(string(text)))
			for n := 1; lines.Scan(); n++ {
				s.at = n
				s.line(lines.Text())
			}
			if s.asserted == 0 {
				t.Errorf("%s asserts nothing", file)
			}
		})
	}
}

// script is the state of a script while it runs.
type script struct {
	t        *testing.T
	file     string
	at       int
	doc      policy.Document
	own      []policy.Range
	exempt   []netip.Prefix
	compiled *policy.Policy
	asserted int
}

func (s *script) fatalf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s:%d: %s", s.file, s.at, fmt.Sprintf(format, args...))
}

func (s *script) line(text string) {
	s.t.Helper()
	fields := strings.Fields(text)
	if len(fields) == 0 || strings.HasPrefix(text, "#") {
		return
	}
	switch fields[0] {
	case "node":
		s.own, s.exempt = nil, nil
	case "document":
		s.doc, s.compiled = policy.Document{}, nil
		if len(fields) > 1 && fields[1] == "default=allow" {
			s.doc.Default = policy.Allow
		}
	case "allowOut":
		s.doc.AllowOut = append(s.doc.AllowOut, fields[1:]...)
	case "denyOut":
		s.doc.DenyOut = append(s.doc.DenyOut, fields[1:]...)
	case "exempt":
		for _, f := range fields[1:] {
			s.exempt = append(s.exempt, netip.MustParsePrefix(f))
		}
	case "own":
		for _, f := range fields[1:] {
			s.own = append(s.own, policy.Range{Prefix: netip.MustParsePrefix(f), Why: "an address of this node"})
		}
	default:
		s.expect(text)
	}
}

// expect checks one line "PROTO ADDRESS:PORT => VERDICT: REASON" or
// "error => TEXT".
func (s *script) expect(text string) {
	s.t.Helper()
	s.asserted++
	left, want, ok := strings.Cut(text, "=>")
	if !ok {
		s.fatalf("cannot read %q", text)
	}
	want = strings.TrimSpace(want)
	fields := strings.Fields(left)
	if fields[0] == "error" {
		_, err := s.parse()
		if err == nil || err.Error() != want {
			s.t.Errorf("%s:%d: error %v, want %s", s.file, s.at, err, want)
		}
		return
	}
	if s.compiled == nil {
		var err error
		if s.compiled, err = s.parse(); err != nil {
			s.fatalf("document is refused: %v", err)
		}
	}
	d := s.compiled.Decide(policy.Flow{Proto: s.proto(fields[0]), Dst: netip.MustParseAddrPort(fields[1])})
	if got := d.Verdict.String() + ": " + d.Reason(); got != want {
		s.t.Errorf("%s:%d: %s\n got %s\nwant %s", s.file, s.at, strings.TrimSpace(left), got, want)
	}
}

func (s *script) parse() (*policy.Policy, error) {
	never, err := policy.NewNever(s.own, s.exempt)
	if err != nil {
		s.fatalf("never-reachable table: %v", err)
	}
	return policy.Parse(s.doc, policy.Options{Never: never})
}

func (s *script) proto(name string) policy.Proto {
	switch name {
	case "tcp":
		return policy.TCP
	case "udp":
		return policy.UDP
	case "icmp":
		return policy.ICMP
	}
	number, err := strconv.ParseUint(strings.TrimPrefix(name, "protocol-"), 10, 8)
	if err != nil {
		s.fatalf("unknown protocol %q", name)
	}
	return policy.Proto(number)
}
