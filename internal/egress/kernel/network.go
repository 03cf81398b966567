package kernel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Address ranges of the slots unless Config says otherwise. The first is set
// aside for benchmarks and routed nowhere; each slot takes two addresses.
func defaultRanges() (v4, v6 netip.Prefix) {
	return netip.MustParsePrefix("198.18.0.0/16"), netip.MustParsePrefix("fd6d:6f61:7400::/112")
}

// Config is what a Network is made of.
type Config struct {
	// Instance names this installation in tables and interfaces: 1 to 8
	// lower-case letters and digits.
	Instance string
	// StateDir is the absolute path of a directory where namespaces are bound.
	StateDir string
	// Range4 and Range6 are the addresses of the slots; zero means the default.
	Range4, Range6 netip.Prefix
	// Never is the table of addresses no sandbox reaches. Policies that are
	// applied must have been compiled with the same table.
	Never *policy.Never
	// Names are the hosts of public URLs that the resolver answers for.
	Names  PublicNames
	Logger *slog.Logger
}

// Network is the network of all sandboxes of one machine. It owns the network
// namespace it was opened in: interfaces, addresses and tables with its names.
//
// The rules stay in force when the Network is closed or its process dies.
type Network struct {
	layout
	never *policy.Never
	log   *slog.Logger
	mtu   int
	lock  net.PacketConn // held for as long as the Network is open

	rules   *rules
	tracker *tracker
	barrier *barrier

	lost     atomic.Uint64  // times that events were lost
	removals sync.WaitGroup // of slots that are destroyed

	mu      sync.Mutex
	adopted bool           // the tables in the kernel are those of this process
	slots   map[int]*state // every slot that has rules
	next    int            // where the search for a free number begins
}

// state is what a Network remembers of a slot.
type state struct {
	mu         sync.Mutex // serialises what changes the slot
	open       bool       // it lets packets through, or did, so flows may exist
	gone       bool
	generation int      // of the latest plan
	sets       []string // that the kernel may have for it, of any generation
}

// lockName is bound in the abstract namespace of Unix sockets, of which every
// network namespace has its own: it vanishes with the process.
const lockName = "@moat-network"

// Open checks the machine and takes possession of the network namespace. If an
// earlier process left rules, they stay in force untouched until Adopt; until
// then no slot can be created or changed.
func Open(c Config) (_ *Network, err error) {
	n, err := newNetwork(c)
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	if err := n.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("open network: %w", err), n.Close())
	}
	return n, nil
}

func newNetwork(c Config) (*Network, error) {
	range4, range6 := defaultRanges()
	if c.Range4.IsValid() {
		range4 = c.Range4
	}
	if c.Range6.IsValid() {
		range6 = c.Range6
	}
	l, err := newLayout(c.Instance, c.StateDir, range4, range6)
	if err == nil {
		err = c.Names.check()
	}
	l.names = c.Names
	switch {
	case err != nil:
		return nil, err
	case c.Never == nil:
		return nil, errors.New("no table of never-reachable addresses")
	case c.Logger == nil:
		return nil, errors.New("no logger")
	}
	return &Network{layout: l, never: c.Never, log: c.Logger, slots: map[int]*state{}}, nil
}

func (n *Network) start() (err error) {
	if n.lock, err = net.ListenPacket("unixgram", lockName); errors.Is(err, unix.EADDRINUSE) {
		return ErrInUse
	} else if err != nil {
		return fmt.Errorf("lock the network namespace: %w", err)
	}
	if err := os.MkdirAll(n.stateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := n.checkRanges(); err != nil {
		return err
	}
	if err := prepareHost(); err != nil {
		return err
	}
	if err := hastenRefusals(); err != nil {
		n.log.Warn("refused sandboxes will at times wait for a timeout", "error", err)
	}
	if err := accountFlows(); err != nil {
		n.log.Warn("flows are recorded without bytes and times", "error", err)
	}
	if err := n.fenceRanges(); err != nil {
		return err
	}
	if err := n.raiseDoors(); err != nil {
		return err
	}
	uplinks, err := findUplinks()
	if err != nil {
		return err
	}
	n.mtu = smallestMTU(uplinks)
	if n.tracker, err = openTracker(); err != nil {
		return err
	}
	if n.barrier, err = openBarrier(); err != nil {
		n.log.Info("changes of policy take some 10 ms longer", "error", err)
	}
	if n.rules, err = openRules(n.table()); err != nil {
		return err
	}
	if n.rules.flags == 0 {
		n.log.Warn("this kernel cannot protect nftables tables from other programs; flushing the ruleset would open running sandboxes")
	}
	return n.layTables()
}

// layTables makes the shared tables if there are none.
func (n *Network) layTables() error {
	tables, err := n.rules.found()
	if err != nil || len(tables) > 0 {
		return err
	}
	if err := n.rules.renew(n.barrier, planBase(n.layout, n.never), nil); err != nil {
		return fmt.Errorf("lay the tables: %w", err)
	}
	n.adopted = true
	return n.tracker.endOthers(n.layout, nil)
}

// checkRanges refuses addresses that are in use for something else.
func (n *Network) checkRanges() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		prefix, ok := netipx.FromStdIPNet(r.Dst)
		if !ok || r.Type == unix.RTN_UNREACHABLE || !inside(n.range4, prefix) && !inside(n.range6, prefix) {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if isNoLink(err) { // it has just gone, and the route with it
			continue
		}
		if err != nil {
			return fmt.Errorf("find the interface of route %v: %w", prefix, err)
		}
		if _, ours := n.indexOfIf(link.Attrs().Name); !ours {
			return fmt.Errorf("the addresses of the slots are in use: %v is routed to %s", prefix, link.Attrs().Name)
		}
	}
	return nil
}

// fences are routes that lead nowhere for all addresses of slots. Each slot has
// more specific ones while it exists. Without the fences, what the node still
// sends to a sandbox that is gone would take the default route out of the house.
func (n *Network) fences() []*netlink.Route {
	var routes []*netlink.Route
	for _, p := range []netip.Prefix{n.range4, n.range6} {
		routes = append(routes, &netlink.Route{Dst: netipx.PrefixIPNet(p), Type: unix.RTN_UNREACHABLE})
	}
	return routes
}

func (n *Network) fenceRanges() error {
	for _, r := range n.fences() {
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("fence %v: %w", r.Dst, err)
		}
	}
	return nil
}

func (n *Network) removeFences() error {
	for _, r := range n.fences() {
		if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove fence %v: %w", r.Dst, err)
		}
	}
	return nil
}

func inside(outer, p netip.Prefix) bool {
	return p.Bits() >= outer.Bits() && outer.Contains(p.Addr())
}

// Close lets go of the namespace. Slots, tables and flows stay as they are. No
// other method may run at the time or be called afterwards.
func (n *Network) Close() error {
	n.removals.Wait()
	var errs []error
	if n.tracker != nil {
		errs = append(errs, n.tracker.close())
	}
	if n.barrier != nil {
		errs = append(errs, n.barrier.close())
	}
	if n.rules != nil {
		errs = append(errs, n.rules.close())
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}

// errNotAdopted: rules of an earlier process are in force.
var errNotAdopted = errors.New("rules of an earlier process are in force; adopt its slots first")

// hold returns the state of a slot, locked, or ErrUnknownSlot.
func (n *Network) hold(s Slot) (*state, error) {
	if own, err := n.slot(s.Index); err != nil || own.HostIf != s.HostIf || own.NetNS != s.NetNS {
		return nil, ErrUnknownSlot
	}
	n.mu.Lock()
	st, adopted := n.slots[s.Index], n.adopted
	n.mu.Unlock()
	if !adopted {
		return nil, errNotAdopted
	}
	if st == nil {
		return nil, ErrUnknownSlot
	}
	st.mu.Lock()
	if st.gone {
		st.mu.Unlock()
		return nil, ErrUnknownSlot
	}
	return st, nil
}
