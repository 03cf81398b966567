package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// tracker is the connection to the kernel's connection tracker. The socket
// stays open: closing one waits until the kernel has freed what the last
// nftables transaction left, which takes many times as long as the request.
type tracker struct {
	sockets map[int]*nl.SocketHandle
	port    uint32 // of the socket, as the kernel names who ended a flow
	listing *listing
}

func openTracker() (*tracker, error) {
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open conntrack socket: %w", err)
	}
	port, err := socket.GetPid()
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("open conntrack socket: %w", err)
	}
	sockets := map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: socket}}
	return &tracker{sockets: sockets, port: port, listing: openListing()}, nil
}

func (t *tracker) close() error {
	t.sockets[unix.NETLINK_NETFILTER].Close()
	return t.listing.close()
}

// tracked is one entry of the connection tracker, seen from the side that
// began the flow.
type tracked struct {
	src netip.Addr
	dst netip.Addr // where the packets really go, after any translation
	// proto and port are of the destination; both are 0 where it has none.
	proto uint8
	port  uint16

	family byte
	key    []byte // the attributes that name the entry when it is deleted
}

// flow is the entry as policy sees it.
func (c tracked) flow() policy.Flow {
	proto := policy.Proto(c.proto)
	if c.proto == unix.IPPROTO_ICMPV6 && c.dst.Is6() {
		proto = policy.ICMP
	}
	return policy.Flow{Proto: proto, Dst: netip.AddrPortFrom(c.dst, c.port)}
}

// end ends all flows that are condemned and returns how many there were. The
// next packet of such a flow is judged like that of a new one.
//
// All entries are read and chosen here. The kernel could do that, but its
// filter picks exactly the wrong entries for IPv6 (at least up to Linux 6.18).
func (t *tracker) end(condemned func(tracked) bool) (int, error) {
	found, err := t.list(condemned)
	if err != nil {
		return 0, fmt.Errorf("list flows: %w", err)
	}
	return t.remove(found)
}

// remove ends flows and returns how many of them had not ended by themselves.
func (t *tracker) remove(flows []tracked) (removed int, err error) {
	for _, c := range flows {
		req := t.request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, c.family)
		req.AddRawData(c.key)
		switch _, err := req.Execute(unix.NETLINK_NETFILTER, 0); {
		case err == nil:
			removed++
		case !errors.Is(err, unix.ENOENT):
			return removed, fmt.Errorf("end flow from %v to %v: %w", c.src, c.dst, err)
		}
	}
	return removed, nil
}

// list returns the entries that match.
func (t *tracker) list(match func(tracked) bool) (found []tracked, err error) {
	// The kernel says when the table moved under the dump. What was missed then
	// would live on, so the dump is repeated.
	for range 10 {
		found = nil
		var broken error
		req := t.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, unix.AF_UNSPEC)
		err = req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
			var c tracked
			if c, broken = parseTracked(msg); broken == nil && match(c) {
				found = append(found, c)
			}
			return broken == nil
		})
		if broken != nil {
			return nil, broken
		}
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			return found, err
		}
	}
	return nil, err
}

func (t *tracker) request(operation, flags int, family byte) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.Sockets = t.sockets
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

// Attributes of a conntrack message that netlink does not name, from
// linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaID   = 12
	ctaZone = 18
)

// parseTracked reads one entry. What cannot be read is an error: an entry that
// was passed over would be a flow that is not ended.
func parseTracked(msg []byte) (tracked, error) {
	if len(msg) < genmsgLen {
		return tracked{}, fmt.Errorf("cannot read the entry %x", msg)
	}
	c := tracked{family: msg[0]}
	for kind, value := range attrs(msg[genmsgLen:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			orig := parseTuple(value)
			c.src, c.proto = orig.src, orig.proto
			c.key = attr(c.key, kind|unix.NLA_F_NESTED, value)
		case nl.CTA_TUPLE_REPLY:
			reply := parseTuple(value)
			c.dst, c.port = reply.src, reply.sport
		case ctaID, ctaZone:
			c.key = attr(c.key, kind, value)
		}
	}
	if !c.src.IsValid() || !c.dst.IsValid() {
		return tracked{}, fmt.Errorf("cannot read the entry %x", msg)
	}
	return c, nil
}

// tuple is one direction of a flow.
type tuple struct {
	src   netip.Addr
	proto uint8
	sport uint16
}

func parseTuple(b []byte) (t tuple) {
	for part, values := range attrs(b) {
		for kind, v := range attrs(values) {
			switch {
			case part == nl.CTA_TUPLE_IP && (kind == nl.CTA_IP_V4_SRC || kind == nl.CTA_IP_V6_SRC):
				t.src, _ = netip.AddrFromSlice(v)
			case part == nl.CTA_TUPLE_PROTO && kind == nl.CTA_PROTO_NUM && len(v) == 1:
				t.proto = v[0]
			case part == nl.CTA_TUPLE_PROTO && kind == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
				t.sport = binary.BigEndian.Uint16(v)
			}
		}
	}
	return t
}

// endDenied ends the flows of a slot that a policy denies. Without a policy
// that is all of them, those that were begun from outside included.
func (t *tracker) endDenied(l layout, s Slot, p *policy.Policy) (int, error) {
	condemned := func(c tracked) bool {
		if c.src == s.IP4 || c.src == s.IP6 {
			return !l.mayLive(c, p)
		}
		return p == nil && (c.dst == s.IP4 || c.dst == s.IP6)
	}
	ended, all, err := t.endListed(s, condemned)
	if all || err != nil {
		return ended, err
	}
	others, err := t.end(condemned)
	return ended + others, err
}

// endListed ends those flows of a slot that are condemned and listed. It reports
// whether that is certainly all of them: the list was whole, or another one
// showed none any more.
func (t *tracker) endListed(s Slot, condemned func(tracked) bool) (ended int, all bool, err error) {
	for pass := range 3 {
		found, whole, err := t.listing.of(s)
		if err != nil { // there are other ways
			return ended, false, nil
		}
		found = slices.DeleteFunc(found, func(c tracked) bool { return !condemned(c) })
		n, err := t.remove(found)
		ended += n
		if err != nil {
			return ended, false, err
		}
		if whole && n == len(found) || pass > 0 && len(found) == 0 {
			return ended, true, nil
		}
	}
	return ended, false, nil
}

// endOthers ends all flows of slots but those that their policies allow, and
// those begun from outside to a slot that has a tenant.
func (t *tracker) endOthers(l layout, tenants []Tenant) error {
	tenant := map[netip.Addr]*policy.Policy{}
	for _, t := range tenants {
		tenant[t.Slot.IP4], tenant[t.Slot.IP6] = t.Policy, t.Policy
	}
	_, err := t.end(func(c tracked) bool {
		switch {
		case l.owns(c.src):
			return !l.mayLive(c, tenant[c.src])
		case l.owns(c.dst):
			return tenant[c.dst] == nil
		}
		return false
	})
	return err
}

// mayLive reports whether a flow of a slot may go on under a policy. One that
// was redirected may: the proxy and the resolver judge it themselves, by names
// that the kernel does not know. One that would be redirected now may not.
func (l layout) mayLive(c tracked, p *policy.Policy) bool {
	if l.doors.has(c.dst) {
		return p != nil
	}
	f := c.flow()
	return p.Decide(f).Verdict == policy.Allow && !mustCarry(p.Carry(), f)
}
