package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

func TestOnlyOneNetworkPerNamespace(t *testing.T) {
	n := open(t)
	if second, err := Open(config(t)); !errors.Is(err, ErrInUse) {
		t.Errorf("a second network: %v, %v", second, err)
	}
	s := create(t, n, openPolicy(t)) // the first is unharmed
	expect(t, s, policy.Allow, one4)
}

func TestOpenRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no instance":           {func(c *Config) { c.Instance = "" }, "instance"},
		"relative state dir":    {func(c *Config) { c.StateDir = "state" }, "absolute"},
		"no table":              {func(c *Config) { c.Never = nil }, "never-reachable"},
		"no logger":             {func(c *Config) { c.Logger = nil }, "logger"},
		"range of wrong family": {func(c *Config) { c.Range4 = netip.MustParsePrefix("fd00::/64") }, "IPv4"},
		"range of the uplink":   {func(c *Config) { c.Range4 = netip.MustParsePrefix("203.0.0.0/16") }, "203.0.113.0/24 is routed to up0"},
		"range6 of the uplink":  {func(c *Config) { c.Range6 = netip.MustParsePrefix("2001:db8:1::/64") }, "is routed to up0"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t)
			test.change(&c)
			n, err := Open(c)
			if err == nil {
				t.Fatalf("opened (close: %v)", n.Close())
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// A sweep removes what is whole, what is half there, and nothing else.
func TestSweepLeavesNothing(t *testing.T) {
	n := open(t)
	kept, whole := create(t, n, openPolicy(t)), create(t, n, openPolicy(t))
	noInterface, noNamespace := create(t, n, nil), create(t, n, nil)
	if err := removePair(noInterface.HostIf); err != nil {
		t.Fatal(err)
	}
	if err := removeNamespace(noNamespace.NetNS); err != nil {
		t.Fatal(err)
	}
	stale := mustSlot(t, n, 1) // a file without a namespace, as after a reboot
	if err := os.WriteFile(stale.NetNS, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(n.stateDir, "slot-one")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	reopen(t, n)
	n.slots = map[int]*state{}
	if err := n.Sweep(context.Background(), nil); !errors.Is(err, errNotAdopted) {
		t.Errorf("swept under foreign rules: %v", err)
	}
	if err := n.Adopt(context.Background(), []Tenant{{Slot: kept, Policy: openPolicy(t)}}); err != nil {
		t.Fatal(err)
	}
	if err := n.Sweep(context.Background(), []Slot{kept}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []Slot{whole, noInterface, noNamespace, stale} {
		if _, err := os.Lstat(s.NetNS); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("slot %d: its file is still there: %v", s.Index, err)
		}
		if _, err := netlink.LinkByName(s.HostIf); !isNoLink(err) {
			t.Errorf("slot %d: its interface is still there: %v", s.Index, err)
		}
	}
	listing := nft(t, "list", "ruleset")
	for _, s := range []Slot{whole, noInterface, noNamespace} {
		if strings.Contains(listing, fmt.Sprintf("_%d ", s.Index)) || strings.Contains(listing, s.HostIf) {
			t.Errorf("slot %d: its rules are still there", s.Index)
		}
	}
	if _, err := os.Lstat(foreign); err != nil {
		t.Errorf("a file that is not ours went: %v", err)
	}
	expect(t, kept, policy.Allow, one4, one6)
}

// A create that fails half way leaves nothing, and the next one succeeds.
func TestFailedCreateLeavesNothing(t *testing.T) {
	n := open(t)
	n.next = 7
	s := mustSlot(t, n, 7)
	addBridge(t, s.HostIf)
	if got, err := n.Create(context.Background()); err == nil {
		t.Errorf("created %+v over an interface of that name", got)
	}
	if _, err := os.Lstat(s.NetNS); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace is left behind: %v", err)
	}
	if strings.Contains(nft(t, "list", "ruleset"), "guard_") {
		t.Error("rules are left behind")
	}
	obstacle, err := netlink.LinkByName(s.HostIf)
	if err != nil {
		t.Fatalf("the interface of somebody else went: %v", err)
	}
	if err := netlink.LinkDel(obstacle); err != nil {
		t.Fatal(err)
	}
	expect(t, create(t, n, openPolicy(t)), policy.Allow, one4)
}

// addBridge makes an interface that is no business of ours.
func addBridge(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
}

// What the node still sends to a sandbox that is gone stays at home.
func TestNothingLeavesForAbsentSlots(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	if err := n.Destroy(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	internet := listen(t, internetNS, "net0")
	for _, a := range []netip.Addr{s.IP4, s.IP6} {
		err := exchange("tcp", a, patience)
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("dial %v: %v, want unreachable at once", a, err)
		}
	}
	other := create(t, n, openPolicy(t))
	sendMarker(t, other, internet)
	if got := internet.frames(func(f []byte) bool { return len(f) > 34 && f[30] == 198 && f[31] == 18 }); len(got) > 0 {
		t.Errorf("packets went out: %x", got)
	}
}

// Slots have the smallest MTU of the ways out, and TCP peers are told to keep
// to it even where ICMP does not get through.
func TestSmallUplink(t *testing.T) {
	link, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(link, 1300); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkSetMTU(link, 1500); err != nil {
			t.Error(err)
		}
	})
	n := open(t)
	s := create(t, n, openPolicy(t))
	for _, name := range []string{s.HostIf, innerIf} {
		mtu := 0
		read := func() error {
			l, err := netlink.LinkByName(name)
			if err == nil {
				mtu = l.Attrs().MTU
			}
			return err
		}
		err := onOwnThread(read)
		if name == innerIf {
			err = inNamespace(s.NetNS, read)
		}
		if err != nil || mtu != 1300 {
			t.Errorf("%s has MTU %d, %v, want 1300", name, mtu, err)
		}
	}
	internet := listen(t, internetNS, "net0")
	syn := []byte{0x30, 0x39, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0x05, 0xb4} // MSS 1460
	binary.BigEndian.PutUint16(syn[16:], transportChecksum(s.IP4, addr(one4), unix.IPPROTO_TCP, syn))
	sendFrames(t, s, ether(s.GatewayMAC, s.MAC, unix.ETH_P_IP, ip4(s.IP4, addr(one4), unix.IPPROTO_TCP, nil, syn)))
	isSYN := func(f []byte) bool { return len(f) >= 58 && f[23] == unix.IPPROTO_TCP && f[47] == 2 && f[37] == 9 }
	internet.await(t, "the SYN", isSYN)
	if mss := binary.BigEndian.Uint16(internet.frames(isSYN)[0][56:]); mss != 1260 {
		t.Errorf("the peer is told an MSS of %d, want 1260", mss)
	}
}

// Switching on forwarding must not cost a machine its own IPv6 route.
func TestRouterAdvertisementsAreStillObeyed(t *testing.T) {
	ns := filepath.Join("/run", t.Name())
	t.Cleanup(func() {
		if err := removeNamespace(ns); err != nil {
			t.Error(err)
		}
	})
	got := map[string]string{}
	err := makeNamespace(ns, func() error {
		for name, accept := range map[string]string{"auto": "1", "manual": "0", "router": "2"} {
			addBridge(t, name)
			if err := setSysctl("ipv6/conf/"+name+"/accept_ra", accept); err != nil {
				return err
			}
		}
		if err := errors.Join(prepareHost(), prepareHost(), hastenRefusals(), hastenRefusals()); err != nil { // the second finds all done
			return err
		}
		for _, name := range []string{"ipv6/conf/auto/accept_ra", "ipv6/conf/manual/accept_ra", "ipv6/conf/router/accept_ra", "ipv6/conf/all/forwarding", "ipv4/ip_forward", "ipv4/icmp_ratelimit"} {
			var err error
			if got[name], err = readSysctl(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"ipv6/conf/auto/accept_ra": "2", "ipv6/conf/manual/accept_ra": "0", "ipv6/conf/router/accept_ra": "2",
		"ipv6/conf/all/forwarding": "1", "ipv4/ip_forward": "1", "ipv4/icmp_ratelimit": "0",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("net/%s is %q, want %q", name, got[name], value)
		}
	}
}

func TestInspect(t *testing.T) {
	report, err := Inspect("test")
	if err != nil {
		t.Fatal(err)
	}
	if want := []Uplink{{Name: "up0", MTU: 1500, IPv4: true, IPv6: true}}; !slices.Equal(report.Uplinks, want) || len(report.Findings) > 0 {
		t.Errorf("all is well, but the report is %+v", report)
	}

	nft(t, "add", "table", "ip", "filter")
	t.Cleanup(func() { nft(t, "delete", "table", "ip", "filter") })
	nft(t, "add", "chain", "ip", "filter", "FORWARD", "{ type filter hook forward priority 0; policy drop; }")
	report, err = Inspect("test")
	if err != nil || len(report.Findings) != 1 || !strings.Contains(report.Findings[0], "chain FORWARD of table ip filter drops") {
		t.Errorf("with a wall in the way: %+v, %v", report, err)
	}
	nft(t, "add", "chain", "ip", "filter", "DOCKER-USER")
	report, err = Inspect("test")
	if err != nil || len(report.Findings) != 1 || !strings.Contains(report.Findings[0], "iptables -I DOCKER-USER -i mtest-+ -j ACCEPT") {
		t.Errorf("with Docker in the way: %+v, %v", report, err)
	}

	// Such a wall keeps everything in; it never lets anything out.
	n := open(t)
	s := create(t, n, compile(t, policy.Document{Default: policy.Allow, DenyOut: []string{eight4}}))
	expectSilence(t, s, one4)
	expect(t, s, policy.Deny, eight4)
}

func TestInspectWithoutUplinks(t *testing.T) {
	var report Report
	ns := filepath.Join("/run", t.Name())
	err := makeNamespace(ns, func() (err error) {
		report, err = Inspect("test")
		return err
	})
	if err := errors.Join(err, removeNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	if len(report.Uplinks) != 0 || len(report.Findings) != 2 {
		t.Errorf("without any route the report is %+v", report)
	}
}

// No thread of the process stays in a foreign namespace, least of all the main
// one.
func TestThreadsStayAtHome(t *testing.T) {
	n := open(t)
	for range 20 {
		probe(t, create(t, n, openPolicy(t)), policy.UDP, addr(one4))
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	strays := func() (found []string) {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			ns, err := os.Readlink(filepath.Join("/proc/self/task", task.Name(), "ns/net"))
			if err == nil && ns != home {
				found = append(found, task.Name())
			}
		}
		return found
	}
	for end := time.Now().Add(20 * time.Second); len(strays()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("threads %v are in other namespaces than the process", strays())
		}
	}
}

// Namespaces are gone for good, not only their names: nothing holds them.
func TestDestroyedNamespacesAreFreed(t *testing.T) {
	n := open(t)
	s := create(t, n, openPolicy(t))
	probe(t, s, policy.UDP, addr(one4))
	var fs unix.Stat_t
	if err := unix.Stat(s.NetNS, &fs); err != nil {
		t.Fatal(err)
	}
	if err := n.Destroy(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if err := n.Destroy(context.Background(), s); err != nil {
		t.Errorf("destroying it again: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), fmt.Sprintf("net:[%d]", fs.Ino)) {
		t.Error("the namespace is still bound")
	}
}
