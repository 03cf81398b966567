package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// The tests run on a node of their own: a network namespace whose only route
// leads to another namespace, the internet, where every address answers. No
// packet can leave them.

// nodeMark tells the test binary that it runs on the node already.
const nodeMark = "MOAT_KERNEL_TEST_NODE"

func TestMain(m *testing.M) {
	if os.Getenv(nodeMark) == "" {
		os.Exit(runOnNode())
	}
	if err := buildInternet(); err != nil {
		fmt.Fprintln(os.Stderr, "build the laboratory:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runOnNode runs this binary again in fresh network and mount namespaces,
// which vanish with it.
func runOnNode() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), nodeMark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "enter the laboratory:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// Addresses of the laboratory. The node's are what a provider would give it.
var (
	node4, router4 = netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.1")
	node6, router6 = netip.MustParseAddr("2001:db8:1::10"), netip.MustParseAddr("2001:db8:1::1")

	nodeMAC, routerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

const (
	internetNS = "/run/moat-test-internet"
	echoPort   = 7
)

func buildInternet() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("moat-test", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount a /run of our own: %w", err)
	}
	if err := raiseLoopback(); err != nil {
		return err
	}
	if err := makeNamespace(internetNS, raiseLoopback); err != nil {
		return err
	}
	ns, err := os.Open(internetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: "up0", TxQLen: -1, HardwareAddr: nodeMAC})
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerNamespace = "net0", routerMAC, netlink.NsFd(ns.Fd())
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	if err := connect("up0", end{addr4: node4, addr6: node6, peer4: router4, peer6: router6, peerMAC: routerMAC}); err != nil {
		return err
	}
	if err := addDefaultRoutes("up0", router4, router6); err != nil {
		return err
	}
	return inNamespace(internetNS, func() error {
		err := connect("net0", end{addr4: router4, addr6: router6, peer4: node4, peer6: node6, peerMAC: nodeMAC})
		if err != nil {
			return err
		}
		if err := answerEverywhere(); err != nil {
			return err
		}
		return serveEchoes()
	})
}

// connect configures one end of the wire between node and internet. Like the
// ends of slots, both know each other, which spares the first packet the wait
// for neighbour discovery; the subnet around them makes them look like any uplink.
func connect(name string, e end) error {
	if err := quietIPv6(name); err != nil {
		return err
	}
	if err := raise(name, e); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{netip.PrefixFrom(e.addr4, 24), netip.PrefixFrom(e.addr6, 64)} {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: netipx.PrefixIPNet(p.Masked()), Scope: unix.RT_SCOPE_LINK}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route %v to %s: %w", p, name, err)
		}
	}
	return nil
}

// answerEverywhere makes every address in the world one of this namespace, the
// private and the node-local ones too: what is not reached there was stopped by
// the node.
func answerEverywhere() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, family := range []netip.Addr{node4, node6} {
		route := &netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: anywhere(family), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_MAIN,
			Scope: unix.RT_SCOPE_HOST,
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("answer for %v: %w", route.Dst, err)
		}
	}
	return errors.Join(
		setSysctl("ipv6/ip_nonlocal_bind", "1"),
		setSysctl("ipv4/ip_nonlocal_bind", "1"),
	)
}

// serveEchoes answers TCP and UDP on echoPort of every address.
func serveEchoes() error {
	for _, network := range []string{"tcp4", "tcp6"} {
		ln, err := net.Listen(network, fmt.Sprintf(":%d", echoPort))
		if err != nil {
			return err
		}
		go acceptEchoes(ln)
	}
	for _, network := range []string{"udp4", "udp6"} {
		conn, err := net.ListenPacket(network, fmt.Sprintf(":%d", echoPort))
		if err != nil {
			return err
		}
		if err := wantDestination(conn.(*net.UDPConn), network); err != nil {
			return err
		}
		go sendBack(conn.(*net.UDPConn))
	}
	return nil
}

func acceptEchoes(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		// Slots vanish in the middle of conversations. Their connections must not
		// linger here and meet a later one from the same port.
		_ = conn.(*net.TCPConn).SetLinger(0)
		go func() {
			defer conn.Close()
			buf := make([]byte, 64<<10)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				if _, err := conn.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// wantDestination asks for the address that each datagram was sent to.
func wantDestination(conn *net.UDPConn, network string) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if network == "udp4" {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	return errors.Join(err, failed)
}

// sendBack answers from the address that was asked: the control message of a
// datagram that came says where the answer goes from.
func sendBack(conn *net.UDPConn) {
	buf, oob := make([]byte, 64<<10), make([]byte, 128)
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		_, _, _ = conn.WriteMsgUDPAddrPort(buf[:n], oob[:oobn], from) // a lost answer fails the test that waits for it
	}
}

// never is the table of the laboratory's node.
func never(t testing.TB) *policy.Never {
	t.Helper()
	var own []policy.Range
	for _, a := range []netip.Addr{node4, node6} {
		own = append(own, policy.Range{Prefix: netip.PrefixFrom(a, a.BitLen()), Why: "an address of this node"})
	}
	n, err := policy.NewNever(own, nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func compile(t testing.TB, doc policy.Document) *policy.Policy {
	t.Helper()
	p, err := policy.Parse(doc, policy.Options{Never: never(t), Rules: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func openPolicy(t testing.TB) *policy.Policy {
	return compile(t, policy.Document{Default: policy.Allow})
}

func config(t testing.TB) Config {
	return Config{
		Instance: "test", StateDir: filepath.Join("/run", "moat", t.Name()), Never: never(t), Names: publicNames(), Logger: slog.New(slog.DiscardHandler),
	}
}

// publicNames are hosts such as 3000-abc.sandboxes.moat.test.
func publicNames() PublicNames {
	return PublicNames{Below: "sandboxes.moat.test", Shortest: 5, Longest: 9}
}

// open opens a network and checks, when the test is over, that nothing is left
// of it.
func open(t testing.TB) *Network {
	t.Helper()
	return openWith(t, config(t))
}

func openWith(t testing.TB, c Config) *Network {
	t.Helper()
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { uninstall(t, n) })
	return n
}

func uninstall(t testing.TB, n *Network) {
	t.Helper()
	if err := errors.Join(n.Uninstall(context.Background()), n.Close()); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, n); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
}

// leftovers lists everything of an instance that is still on the node.
func leftovers(t testing.TB, n *Network) []string {
	t.Helper()
	var left []string
	traces, err := n.traces()
	if err != nil {
		t.Fatal(err)
	}
	for index := range traces {
		left = append(left, fmt.Sprintf("slot %d", index))
	}
	if tables := nft(t, "list", "tables"); strings.Contains(tables, "moat_") {
		left = append(left, tables)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Type == unix.RTN_UNREACHABLE {
			left = append(left, r.String())
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := netipx.FromStdIP(a.IP); ok && n.doors.has(ip) {
			left = append(left, "address "+a.String())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), n.stateDir) {
		left = append(left, "mounts in "+n.stateDir)
	}
	return left
}

// nft shows what the kernel holds; only tests use it.
func nft(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v: %s", args, err, out)
	}
	return string(out)
}

// create makes a slot with a policy.
func create(t testing.TB, n *Network, p *policy.Policy) Slot {
	t.Helper()
	s, err := n.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	apply(t, n, s, p)
	return s
}

func apply(t testing.TB, n *Network, s Slot, p *policy.Policy) Receipt {
	t.Helper()
	r, err := n.Apply(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// addNodeAddr gives the node another address while a test runs.
func addNodeAddr(t *testing.T, a netip.Addr) {
	t.Helper()
	link, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	given := &netlink.Addr{IPNet: netipx.AddrIPNet(a)}
	if err := netlink.AddrAdd(link, given); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.AddrDel(link, given); err != nil {
			t.Error(err)
		}
	})
}

// routeSlotsToNode makes the internet send packets for slots to the node, as a
// machine on the same network could.
func routeSlotsToNode(t *testing.T, n *Network) {
	t.Helper()
	routeToNode(t, n.range4, node4)
	routeToNode(t, n.range6, node6)
}

func routeToNode(t *testing.T, p netip.Prefix, node netip.Addr) {
	t.Helper()
	change := func(apply func(*netlink.Route) error) error {
		return inNamespace(internetNS, func() error {
			link, err := netlink.LinkByName("net0")
			if err != nil {
				return err
			}
			return apply(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netipx.PrefixIPNet(p), Gw: node.AsSlice()})
		})
	}
	if err := change(netlink.RouteAdd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := change(netlink.RouteDel); err != nil {
			t.Error(err)
		}
	})
}
