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
	warnings []policy.Warning // not yet asserted
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
	case "host", "rule", "egressProxy":
		s.request(fields)
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

// expect checks one line: "PROTO ADDRESS:PORT => VERDICT: REASON", the same
// with a name in place of the address, "query NAME => VERDICT: REASON",
// "name NAME => NORMAL FORM" or its error, "error => TEXT" about the document,
// "request METHOD URL => VERDICT: REASON" with what is done to the request
// after a semicolon, and "warning => TEXT" for each of its warnings in order, "none" after the
// last. A name may be quoted as in Go.
func (s *script) expect(text string) {
	s.t.Helper()
	s.asserted++
	left, want, ok := strings.Cut(text, "=>")
	if !ok {
		s.fatalf("cannot read %q", text)
	}
	want = strings.TrimSpace(want)
	fields := strings.Fields(left)
	var got string
	switch fields[0] {
	case "error":
		if _, err := s.parse(); err != nil {
			got = err.Error()
		}
	case "name":
		name, err := policy.ParseName(s.unquote(fields[1]))
		if got = name.String(); err != nil {
			got = err.Error()
		}
	case "warning":
		got = s.nextWarning()
	case "query":
		got = verdict(s.policy().DecideQuery(s.name(fields[1])))
	case "request":
		got = s.ask(fields[1], fields[2], fields[3:])
	case "terminated":
		got = strings.Join(s.policy().Terminated(), " ")
	default:
		got = verdict(s.decide(s.proto(fields[0]), fields[1]))
	}
	if got != want {
		s.t.Errorf("%s:%d: %s\n got %s\nwant %s", s.file, s.at, strings.TrimSpace(left), got, want)
	}
}

func verdict(d policy.Decision) string { return d.Verdict.String() + ": " + d.Reason() }

func (s *script) decide(proto policy.Proto, dst string) policy.Decision {
	if addr, err := netip.ParseAddrPort(dst); err == nil {
		return s.policy().Decide(policy.Flow{Proto: proto, Dst: addr})
	}
	colon := strings.LastIndexByte(dst, ':')
	port, err := strconv.ParseUint(dst[colon+1:], 10, 16)
	if err != nil {
		s.fatalf("no port in %q", dst)
	}
	return s.policy().DecideName(s.name(dst[:colon]), proto, uint16(port))
}

// name is the zero name for "-", which stands for a flow without a name, and
// for what is not a name: that is what those who enforce make of it.
func (s *script) name(text string) policy.Name {
	if name, err := policy.ParseName(s.unquote(text)); err == nil && text != "-" {
		return name
	}
	return policy.Name{}
}

func (s *script) unquote(text string) string {
	if !strings.HasPrefix(text, `"`) {
		return text
	}
	plain, err := strconv.Unquote(text)
	if err != nil {
		s.fatalf("%s: %v", text, err)
	}
	return plain
}

func (s *script) nextWarning() string {
	s.policy()
	if len(s.warnings) == 0 {
		return "none"
	}
	next := s.warnings[0]
	s.warnings = s.warnings[1:]
	return next.String()
}

// policy compiles the document when it is first asked.
func (s *script) policy() *policy.Policy {
	s.t.Helper()
	if s.compiled == nil {
		var err error
		if s.compiled, err = s.parse(); err != nil {
			s.fatalf("document is refused: %v", err)
		}
		s.warnings = s.compiled.Warnings()
	}
	return s.compiled
}

func (s *script) parse() (*policy.Policy, error) {
	never, err := policy.NewNever(s.own, s.exempt)
	if err != nil {
		s.fatalf("never-reachable table: %v", err)
	}
	return policy.Parse(s.doc, policy.Options{Never: never, Rules: true})
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
