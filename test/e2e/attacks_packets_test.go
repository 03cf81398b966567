package e2e

import (
	"bufio"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// allowedAddr is an address that the policy of these attacks allows.
const allowedAddr = "9.9.9.9"

// TestAttacksWithPackets: attacks 21 to 27, which do not care for names.
func TestAttacksWithPackets(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, only("example.com", "*.evil.example", allowedAddr))
	tryAll(t, s, box, []attack{
		{"TestAttack21QUIC", attack21},
		{"TestAttack22ICMPTunnel", attack22},
		{"TestAttack23IPv6", attack23},
		{"TestAttack24ForgedPackets", attack24},
		{"TestAttack25SandboxToSandbox", attack25},
		{"TestAttack26NodeItself", attack26},
		{"TestAttack27Exhaustion", attack27},
	})
}

// QUIC to a host that is allowed by name is refused at once, by ICMP, so that
// clients turn to TCP.
func attack21(t *testing.T, s *harness.Server, box *harness.Box) {
	for target, o := range probe(t, box, "udp:93.184.216.34:443", "udp:[2606:2800:220:1::34]:443", "udp:93.184.216.34:80", "udp:8.8.8.8:443") {
		if o.Result == "answered" {
			t.Errorf("%s answered", target)
		}
		if !slices.ContainsFunc(s.Wire.Packets(), prohibits(strings.TrimPrefix(target, "udp:"))) {
			t.Errorf("%s: no ICMP error says that it is refused", target)
		}
	}
	visits{"https://example.com/": "this is example.com"}.check(t, box)
}

// Echo requests are judged by address, and few.
func attack22(t *testing.T, s *harness.Server, box *harness.Box) {
	found := probe(t, box, "icmp:"+allowedAddr, "icmp:"+attacker, "icmp:93.184.216.34", "icmp:"+attacker6)
	if o := found["icmp:"+allowedAddr]; o.Result != "answered" {
		t.Errorf("allowed: %+v", o)
	}
	delete(found, "icmp:"+allowedAddr)
	for target, o := range found {
		if o.Result == "answered" {
			t.Errorf("%s answered", target)
		}
	}
	const many = 300
	text := box.MustRun(t, prober+" probe "+strings.Repeat("icmp:"+allowedAddr+" ", many))
	if n := strings.Count(text, `"answered"`); n == 0 || n > many/2 {
		t.Errorf("of %d echo requests at once %d were answered, want few", many, n)
	}
}

func attack23(t *testing.T, s *harness.Server, box *harness.Box) {
	found := probe(t, box, "tcp:[2606:2800:220:1::34]:7", "udp:[2606:2800:220:1::34]:7", "tcp:["+attacker6+"]:7", "tcp:[2606:2800:220:1::34]:22", "icmp:2606:2800:220:1::34")
	for target, o := range found {
		if o.Result == "answered" || strings.HasPrefix(target, "tcp") && (o.Result != "refused" || o.Millis > atOnce) {
			t.Errorf("%s: %+v", target, o)
		}
	}
	conn := mustDial(t, box, "tcp:["+attacker6+"]:80")
	answer, body := request(t, conn, bufio.NewReader(conn), get("evil.example", "/"))
	expectRefused(t, s, box, answer, body, "no entry of allowOut names evil.example")
}

// forge tries to send what does not come from its own address, in all the ways
// that root in a sandbox has, to an address that the policy allows.
const forge = `
import socket, struct, subprocess
def attempt(what, do):
    try:
        do()
        print(what, "sent")
    except Exception as e:
        print(what, e)
def checksum(b):
    n = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    n = (n >> 16) + (n & 0xffff)
    return ~(n + (n >> 16)) & 0xffff
def packet(src, dst, port):
    udp = struct.pack("!HHHH", 7, port, 12, 0) + b"evil"
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 7, 0, 64, 17, 0, socket.inet_aton(src), socket.inet_aton(dst))
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return head + udp
def raw():
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for src in ("1.2.3.4", "10.0.0.1", "%(neighbour)s", "198.51.100.2"):
        s.sendto(packet(src, "%(to)s", 4001), ("%(to)s", 0))
def frame():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind(("eth0", 0))
    for kind, body in ((0x0800, packet("1.2.3.4", "%(to)s", 4002)), (0x0806, b"\x00\x01\x08\x00\x06\x04\x00\x01" + b"\x02" * 20), (0x8100, b"\x00\x01\x08\x00" + packet("%(own)s", "%(to)s", 4002)), (0x88cc, b"x" * 50)):
        s.send(b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" + struct.pack("!H", kind) + body)
def address():
    subprocess.run("ip addr add 1.2.3.4/32 dev eth0 || ip addr add 1.2.3.4/32 dev lo", shell=True, check=True)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("1.2.3.4", 0))
    s.sendto(b"evil", ("%(to)s", 4003))
def transparent():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, 15, 1)
    s.bind(("1.2.3.4", 0))
    s.sendto(b"evil", ("%(to)s", 4004))
def options():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4]) + socket.inet_aton("45.60.70.80") + b"\x00")
    s.sendto(b"evil", ("%(to)s", 4005))
def sctp():
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
    s.sendto(b"x" * 40, ("%(to)s", 0))
def gre():
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)
    s.sendto(b"\x00\x00\x08\x00" + packet("%(own)s", "%(to)s", 4006), ("%(to)s", 0))
for do in (raw, frame, address, transparent, options, sctp, gre):
    attempt(do.__name__, do)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"honest", ("%(to)s", 4000))
`

// Whatever root in the sandbox sends, only UDP, TCP and ICMP from its own
// addresses get out.
func attack24(t *testing.T, s *harness.Server, box *harness.Box) {
	other := withProber(t, s, api.NewSandbox{})
	own, neighbour := strings.Fields(box.MustRun(t, prober+" addrs"))[0], strings.Fields(other.MustRun(t, prober+" addrs"))[0]
	script := strings.NewReplacer("%(to)s", allowedAddr, "%(own)s", own, "%(neighbour)s", neighbour).Replace(forge)
	if err := box.Files.Write(t.Context(), "forge.py", strings.NewReader(script)); err != nil {
		t.Fatal(err)
	}
	done := box.RunAs(t, "root", "cd /home/user && python3 forge.py")
	t.Logf("what the sandbox could try:\n%s%s", done.Stdout, done.Stderr)
	if done.Code != 0 {
		t.Errorf("the attack broke down: exit %d", done.Code)
	}
	honest := func(p lab.Packet) bool { return p.To.String() == allowedAddr && p.ToPort == 4000 }
	s.Wait("the honest packet arrives", func() bool { return slices.ContainsFunc(s.Lab.Packets(), honest) })
	for _, p := range s.Lab.Packets() {
		switch {
		case p.To.String() == allowedAddr && p.ToPort > 4000 && p.ToPort < 4010 && p.ToPort != 4004 && p.ToPort != 4005:
			t.Errorf("a forged packet left the node: %s", p)
		case p.From != lab.NodeIP4 && p.From != lab.NodeIP6 && !p.From.IsLinkLocalUnicast():
			t.Errorf("a packet left the node under another address: %s", p)
		case p.Proto != "tcp" && p.Proto != "udp" && p.Proto != "icmp" && p.Proto != "icmp6":
			t.Errorf("another protocol left the node: %s", p)
		}
	}
}

// Other sandboxes are out of reach by address, by a name that leads to them,
// and by way of the node.
func attack25(t *testing.T, s *harness.Server, box *harness.Box) {
	other := withProber(t, s, api.NewSandbox{})
	for _, port := range []string{"80", "8080"} {
		other.Start(t, "sudo "+prober+" serve "+port+" || "+prober+" serve "+port)
	}
	s.Wait("the other sandbox serves", func() bool {
		return probe(t, other, "tcp:127.0.0.1:8080")["tcp:127.0.0.1:8080"].Result != "refused"
	})
	addrs := strings.Fields(other.MustRun(t, prober+" addrs"))
	var targets []string
	for _, addr := range addrs {
		for _, port := range []uint16{80, 443, 8080, api.GuestPort, 53} {
			targets = append(targets, "tcp:"+netip.AddrPortFrom(netip.MustParseAddr(addr), port).String())
		}
		targets = append(targets, "icmp:"+addr, "udp:"+netip.AddrPortFrom(netip.MustParseAddr(addr), 53).String())
	}
	for target, o := range probe(t, box, targets...) {
		if o.Result == "answered" {
			t.Errorf("reached %s", target)
		}
	}
	if err := s.Lab.SetRecords(fmt.Sprintf("neighbour.evil.example. 0 IN A %s\nneighbour6.evil.example. 0 IN AAAA %s\n", addrs[0], addrs[1])); err != nil {
		t.Fatal(err)
	}
	expectNever(t, s, box, "neighbour.evil.example", addrs[0])
	expectNever(t, s, box, "neighbour6.evil.example", addrs[1])
}

// The node's own doors, by each of its addresses.
func attack26(t *testing.T, s *harness.Server, box *harness.Box) {
	own := strings.Fields(box.MustRun(t, prober+" addrs"))
	var targets []string
	add := func(addr string, ports ...uint16) {
		for _, port := range ports {
			targets = append(targets, "tcp:"+netip.AddrPortFrom(netip.MustParseAddr(addr), port).String())
		}
	}
	for _, addr := range own {
		targets = append(targets, gatewayTargets(t, addr)...)
	}
	add(lab.NodeIP4.String(), 22, 80, 443, 18080, 18053)
	add(lab.NodeIP6.String(), 22, 80, 443, 18080, 18053)
	add("198.19.255.1", 53, 80, 443, 18080, 18053)
	add("fd6d:6f61:7401::1", 53, 80, 443, 18080, 18053)
	for target, o := range probe(t, box, targets...) {
		if o.Result == "answered" || o.Result == "silent" {
			t.Errorf("%s: %+v", target, o)
		}
	}
	expectNever(t, s, box, "node.evil.example", lab.NodeIP4.String())
}

// hoard opens more connections than it may have and says nothing on any.
const hoard = `
import socket, time
held, refused = [], 0
for i in range(600):
    s = socket.socket()
    s.settimeout(5)
    try:
        s.connect(("45.60.70.80", 443))
        held.append(s)
    except OSError:
        refused += 1
open("hoarded", "w").write("%d %d" % (len(held), refused))
time.sleep(60)
`

// What one sandbox opens takes nothing from its neighbours, and its own limit
// is recorded.
func attack27(t *testing.T, s *harness.Server, box *harness.Box) {
	neighbour := s.Create(t, only("example.com"))
	if err := box.Files.Write(t.Context(), "hoard.py", strings.NewReader(hoard)); err != nil {
		t.Fatal(err)
	}
	p := box.Start(t, "python3 hoard.py")
	s.Wait("the sandbox has hoarded", func() bool { return box.Run(t, "cat hoarded").Code == 0 })
	began := time.Now()
	visits{"https://example.com/": "this is example.com", "http://example.com/": "this is example.com"}.check(t, neighbour)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the neighbour waited %v", took)
	}
	awaitRecord(t, s, box, "the limit", func(r record) bool { return r.Rule == "limit" && r.Verdict == "deny" })
	if err := p.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	// It has a life after that.
	s.Wait("the sandbox may connect again", func() bool {
		return strings.Contains(box.Run(t, "curl -sS -m 5 https://example.com/").Stdout, "this is example.com")
	})
}
