package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Refused packets are told by the kernel's packet log, which sends the head of
// each to who has bound the group.

// logGroup is the number of our group in the packet log.
const logGroup = 19819

// How many refusals of one sandbox are told, in packets per second: enough for
// people, and not so many that they crowd out those of others.
const (
	refusalRate  = 20
	refusalBurst = 50
)

// logHead is how much of a refused packet is told, in bytes: its addresses and
// ports, behind the longest header there is.
const logHead = 64

// refuseChains tell of a packet and answer it. The meter knows who is told of too
// often.
func refuseChains() []chain {
	return []chain{
		{name: "refuse", rules: []rule{
			{meterOver(meterRefusals, refusalRate, refusalBurst), counter(), goTo("turn_away")},
			{logTo(logGroup, logHead), goTo("turn_away")},
		}},
		{name: "turn_away", rules: []rule{
			{isTCP(), counter(), resetTCP()},
			{counter(), prohibit()},
		}},
	}
}

// Meters keep a count for each interface: of refusals in the last while, and of
// flows that live.
const (
	meterRefusals = "refusals"
	meterFlows    = "flows"
)

// MaxFlows bounds the flows of one sandbox. Connection tracking has room for a
// number of flows (nf_conntrack_max, often 262,144) that the whole machine shares: one
// sandbox must not use it up.
const MaxFlows = 8192

// Messages and attributes of the packet log, from
// linux/netfilter/nfnetlink_log.h.
const (
	logPacket = unix.NFNL_SUBSYS_ULOG << 8
	logConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1

	cfgCommand, cfgMode, cfgTimeout, cfgThreshold = 1, 2, 4, 5

	logHeader, logPayload = 1, 9
)

// bindLog asks for the packets of a group, in batches, and soon.
func (l *listener) bindLog(group uint16) error {
	const bind, copyPacket, patience, batch = 1, 2, 10, 64 // patience in 1/100 s
	mode := append(binary.BigEndian.AppendUint32(nil, logHead), copyPacket, 0)
	settings := attr(nil, cfgMode, mode)
	settings = be32(settings, cfgTimeout, patience)
	settings = be32(settings, cfgThreshold, batch)
	for _, a := range [][]byte{attr(nil, cfgCommand, []byte{bind}), settings} {
		if err := l.ask(logConfig, group, a); err != nil {
			return fmt.Errorf("bind group %d of the packet log: %w", group, err)
		}
	}
	return nil
}

// refusal reads a packet from the log. It is false for what no slot sent.
func (n *Network) refusal(m message, now time.Time) (e Event, ok bool) {
	if m.kind != logPacket || len(m.body) < genmsgLen {
		return Event{}, false
	}
	var hook byte
	for kind, value := range attrs(m.body[genmsgLen:]) {
		switch {
		case kind == logHeader && len(value) >= 3: // protocol, hook
			hook = value[2]
		case kind == logPayload:
			e.Src, e.Dst, e.Proto = parseHead(value)
		}
	}
	e.Began = now
	if e.Slot, ok = n.indexOf(e.Src); !ok || !e.Dst.IsValid() {
		return Event{}, false
	}
	switch {
	case n.owns(e.Dst.Addr()):
		e.Outcome = RefusedSandbox
	case hook == unix.NF_INET_LOCAL_IN:
		e.Outcome = RefusedNode
	case hook == unix.NF_INET_PRE_ROUTING: // where only other sandboxes and too many flows are refused
		e.Outcome = RefusedLimit
	}
	return e, true
}

// parseHead reads the addresses and the port from the head of a packet. The
// guard of a slot lets no packet pass in which more than a fragment header comes
// before TCP, UDP or ICMP, and the tracker puts fragments together. What cannot
// be read is left out.
func parseHead(p []byte) (src netip.Addr, dst netip.AddrPort, proto policy.Proto) {
	var to netip.Addr
	var rest []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		src, to = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
		proto, rest = policy.Proto(p[9]), p[min(int(p[0]&0x0f)*4, len(p)):]
	case len(p) >= 40 && p[0]>>4 == 6:
		src, to = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
		proto, rest = policy.Proto(p[6]), p[40:]
		if proto == unix.IPPROTO_ICMPV6 {
			proto = policy.ICMP
		}
	}
	var port uint16
	if (proto == policy.TCP || proto == policy.UDP) && len(rest) >= 4 {
		port = binary.BigEndian.Uint16(rest[2:])
	}
	return src, netip.AddrPortFrom(to, port), proto
}
