package bench

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/bench/load"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// Where loads go: every address of the internet serves orders on port 443, and
// serverName resolves to serverAddr and to none of IPv6, so that all who are
// compared go there the same way.
const (
	serverName = "github.com"
	serverAddr = "140.82.112.3"
	everything = "0.0.0.0/0"
)

// otherAddrs are further addresses of the internet. Sources behind the same
// address of a node go to one of their own each: a server that has just closed
// a connection takes the next one from the same port for a late packet, and
// lets it wait for a second.
var otherAddrs = []string{"93.184.216.35", "142.250.74.46", "93.184.216.34", "45.60.70.80", "9.9.9.9"}

// startMoat starts the real server, whose sandboxes share this machine's
// kernel: what is measured is the way of their packets, not what gVisor makes
// of them first. What is upstream answers load.
func startMoat(b *testing.B, args ...string) *harness.Server {
	b.Helper()
	s := harness.Start(b, harness.Options{
		Args: append([]string{"--pool", "0", "--isolation", "namespaces"}, args...),
		Lab:  lab.Config{Bare: true},
	})
	serveOrders(b, s.Lab)
	return s
}

// startPlain is a node without us.
func startPlain(b *testing.B) *lab.Lab {
	b.Helper()
	l, err := lab.New(context.WithoutCancel(b.Context()), lab.Config{Bare: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Errorf("close the lab: %v", err)
		}
	})
	serveOrders(b, l)
	shell(b, l.Node, "echo 1 >/proc/sys/net/ipv4/ip_forward; mkdir -p /run/netns")
	return l
}

func serveOrders(b *testing.B, l *lab.Lab) {
	b.Helper()
	serve(b, l, ":443", load.Serve)
}

// serve answers on the internet until the benchmark ends.
func serve(b *testing.B, l *lab.Lab, addr string, answer func(net.Listener)) {
	b.Helper()
	ln, err := l.Internet.Listen("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		answer(ln)
	}()
	b.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
}

// shell runs commands on a node.
func shell(b *testing.B, node *lab.Node, script string) string {
	b.Helper()
	out, err := node.Command(b.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		b.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// sandbox makes a sandbox and returns it as a source of load.
func sandbox(b *testing.B, s *harness.Server, network *api.Network) (*harness.Box, source) {
	b.Helper()
	before := slots(b, s)
	box := s.Create(b, api.NewSandbox{Network: network})
	for _, path := range slots(b, s) {
		if !slices.Contains(before, path) {
			return box, source{s.Lab.Node, path}
		}
	}
	b.Fatal("the new sandbox has no network namespace")
	return nil, source{}
}

// slots lists the namespaces of all sandboxes.
func slots(b *testing.B, s *harness.Server) []string {
	return strings.Fields(shell(b, s.Lab.Node, "ls -d /run/moat/*/netns/slot-* 2>/dev/null || true"))
}

// plainSlot makes what a sandbox has, a namespace joined to the node by a veth
// pair behind NAT, with one nftables rule more, or none.
func plainSlot(b *testing.B, l *lab.Lab, number int, rule string) source {
	b.Helper()
	shell(b, l.Node, fmt.Sprintf(`
		n=%d; host=plain-$n; ns=/run/netns/$host
		ip netns add $host
		ip link add $host type veth peer name eth0 netns $host
		ip addr add 198.18.$n.0/31 dev $host; ip link set $host up
		nsenter --net=$ns ip addr add 198.18.$n.1/31 dev eth0
		nsenter --net=$ns ip link set lo up; nsenter --net=$ns ip link set eth0 up
		nsenter --net=$ns ip route add default via 198.18.$n.0
		nft -f - <<END
table ip plain-$n {
	chain post { type nat hook postrouting priority srcnat; ip saddr 198.18.$n.1 oifname "uplink0" masquerade; }
	chain pre { type nat hook prerouting priority dstnat; iifname "$host" %s; }
}
END`, number, rule))
	return source{l.Node, fmt.Sprintf("/run/netns/plain-%d", number)}
}

// denyAllBut is a network document.
func denyAllBut(allow ...string) *api.Network {
	return &api.Network{AllowOut: allow, DenyOut: []string{everything}}
}

// otherHosts are entries that match nothing that benchmarks do.
func otherHosts(count int) []string {
	hosts := make([]string, count)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("60.%d.%d.%d", i>>16, i>>8&255, i&255)
	}
	return hosts
}

// otherNames are the same for names.
func otherNames(count int) []string {
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("host-%d.example.net", i)
	}
	return names
}
