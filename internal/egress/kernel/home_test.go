package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// dnsQuestion is a DNS message that asks for the addresses of a name.
func dnsQuestion(name string) []byte {
	message := []byte{0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		message = append(append(message, byte(len(label))), label...)
	}
	return append(message, 0, 0, 1, 0, 1)
}

// askName sends a question from a port inside a slot and returns who answers, or
// how it was refused. A port that has asked the same server before has the flow of
// that time.
func askName(t *testing.T, s Slot, port int, server, name string) string {
	t.Helper()
	var conn net.Conn
	err := inNamespace(s.NetNS, func() (err error) {
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{Port: port}}
		conn, err = dialer.Dial("udp", netip.AddrPortFrom(addr(server), 53).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(dnsQuestion(name)); err != nil {
		return refusal(err)
	}
	who, err := readLine(conn)
	switch {
	case err != nil:
		return refusal(err)
	case who == strings.TrimSpace(string(dnsQuestion(name))):
		return "the internet"
	}
	return who
}

// echoQuestions sends back what comes to port 53 of every address out there.
func echoQuestions(t *testing.T) {
	t.Helper()
	err := inNamespace(internetNS, func() error {
		for _, network := range []string{"udp4", "udp6"} {
			conn, err := net.ListenPacket(network, ":53")
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = conn.Close() })
			if err := wantDestination(conn.(*net.UDPConn), network); err != nil {
				return err
			}
			go sendBack(conn.(*net.UDPConn))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Of the questions that addresses allow, those for public URLs go to our resolver,
// whatever the policy carries. All others go where they are sent.
func TestQuestionsForPublicURLs(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	echoQuestions(t)
	const elsewhere = "the internet"
	for what, p := range map[string]*policy.Policy{
		"open":     openPolicy(t),
		"names":    names(t, eight4, eight6),
		"rules":    compile(t, policy.Document{Default: policy.Allow, Rules: strict()}),
		"upstream": compile(t, policy.Document{Default: policy.Allow, EgressProxy: upstream()}),
	} {
		s, port := create(t, n, p), 20_000
		for _, server := range []string{eight4, eight6} {
			ours := fmt.Sprintf("resolver %v", s.ownAddr(addr(server)))
			for name, want := range map[string]string{
				"3-abc.sandboxes.moat.test":      ours,
				"65535-abc.SandBoxes.Moat.TEST":  ours,
				"1234567890.sandboxes.moat.test": elsewhere, // too long
				"1234.sandboxes.moat.test":       elsewhere, // too short
				"3-abc.sandboxes.moat.tess":      elsewhere,
				"3-abc.sandboxes.moat.test.org":  elsewhere,
				"3-abc.sandboxesxmoat.test":      elsewhere,
				"3-abc.x.sandboxes.moat.test":    elsewhere,
				"3-abc.moat.test":                elsewhere,
				"example.com":                    elsewhere,
			} {
				port++
				if got := askName(t, s, port, server, name); got != want {
					t.Errorf("%s: %s at %s: %q answers, want %q", what, name, server, got, want)
				}
			}
		}
	}
}

// A name server that the policy denies by address stays denied.
func TestDeniedQuestionsForPublicURLs(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	const name = "3-abc.sandboxes.moat.test"
	closed := create(t, n, compile(t, policy.Document{}))
	partly := create(t, n, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}))
	for _, s := range []Slot{closed, partly} {
		if got := askName(t, s, 20_000, eight4, name); got != string(prohibited) {
			t.Errorf("%q answers", got)
		}
	}
	if got, want := askName(t, partly, 20_001, eight6, name), fmt.Sprintf("resolver %v", partly.IP6); got != want {
		t.Errorf("%q answers, want %q", got, want)
	}
}

// TestAttack26Home: the addresses that stand for public URLs lead to the proxy by
// TCP, whatever the policy is, and nowhere else.
func TestAttack26Home(t *testing.T) {
	n := open(t)
	openDoors(t, n)
	home4, home6 := policy.HomeAddrs()
	for _, p := range []*policy.Policy{openPolicy(t), names(t), compile(t, policy.Document{})} {
		s := create(t, n, p)
		for _, home := range []string{home4.String(), home6.String()} {
			for _, port := range []uint16{80, 443, 6628, 22, 53} {
				wantVisit(t, s, "tcp", home, port, byProxy(s, home, port))
			}
			wantVisit(t, s, "udp", home, 443, string(prohibited))
			wantVisit(t, s, "udp", home, 53, string(prohibited))
			if got := probe(t, s, policy.ICMP, addr(home)); got != prohibited {
				t.Errorf("ping to %s: %s", home, got)
			}
		}
	}
}

func TestPublicNamesAreChecked(t *testing.T) {
	for _, wrong := range []PublicNames{
		{Below: "moat.test"}, {Below: "moat.test", Shortest: 9, Longest: 8}, {Below: "moat.test", Shortest: 1, Longest: 64},
		{Shortest: 1, Longest: 2}, {Below: "moat..test", Shortest: 1, Longest: 2}, {Below: strings.Repeat("x", 64), Shortest: 1, Longest: 2},
	} {
		if wrong.check() == nil {
			t.Errorf("%+v is accepted", wrong)
		}
	}
}
