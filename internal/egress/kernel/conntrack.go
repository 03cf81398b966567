package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// tracked is one entry of the connection tracker, seen from the side that
// began the flow.
type tracked struct {
	src netip.Addr
	dst netip.Addr // where the packets really go, after any translation
	// proto and port are of the destination; both are 0 where it has none.
	proto uint8
	port  uint16

	key []byte // the attributes that name the entry when it is deleted
}

// Attributes of a conntrack message that netlink does not name, from
// linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaID              = 12
	ctaZone            = 18
	ctaFilter          = 25
	ctaFilterOrigFlags = 1
	filterSource       = 1 << 0
	filterDestination  = 1 << 1
)

// flow is the entry as policy sees it.
func (c tracked) flow() policy.Flow {
	proto := policy.Proto(c.proto)
	if c.proto == unix.IPPROTO_ICMPV6 && c.dst.Is6() {
		proto = policy.ICMP
	}
	return policy.Flow{Proto: proto, Dst: netip.AddrPortFrom(c.dst, c.port)}
}

// end deletes the entry: its next packet is judged like that of a new flow. An
// entry that is gone already is no error.
func (c tracked) end() error {
	req := ctRequest(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, c.src)
	req.AddRawData(c.key)
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("end flow from %v to %v: %w", c.src, c.dst, err)
	}
	return nil
}

// flowsFrom lists the flows that an address began, flowsTo those that were
// begun towards it. The kernel does the filtering where it can (5.8 and
// later); callers get only what matches in any case.
func flowsFrom(a netip.Addr) ([]tracked, error) {
	return flows(a, filterSource, func(c tracked) bool { return c.src == a })
}

func flowsTo(a netip.Addr) ([]tracked, error) {
	return flows(a, filterDestination, func(c tracked) bool { return c.dst == a })
}

// flowsOf lists all flows of the family of an address.
func flowsOf(family netip.Addr) ([]tracked, error) {
	return flows(family, 0, func(tracked) bool { return true })
}

func flows(a netip.Addr, filter uint32, match func(tracked) bool) ([]tracked, error) {
	// The kernel says when the table moved under the dump. What was missed then
	// would live on, so the dump is repeated.
	for range 10 {
		req := ctRequest(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, a)
		if filter != 0 {
			req.AddRawData(ctFilter(a, filter))
		}
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if errors.Is(err, nl.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list flows of %v: %w", a, err)
		}
		var found []tracked
		for _, m := range msgs {
			c, err := parseTracked(m)
			if err != nil {
				return nil, fmt.Errorf("list flows of %v: %w", a, err)
			}
			if match(c) {
				found = append(found, c)
			}
		}
		return found, nil
	}
	return nil, fmt.Errorf("list flows of %v: the table kept changing", a)
}

func ctRequest(operation, flags int, family netip.Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	header := &nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0}
	if family.Is6() {
		header.NfgenFamily = unix.AF_INET6
	}
	req.AddData(header)
	return req
}

// ctFilter asks for entries that were begun from or to an address.
func ctFilter(a netip.Addr, flags uint32) []byte {
	kind := uint16(nl.CTA_IP_V4_SRC)
	if a.Is6() {
		kind = nl.CTA_IP_V6_SRC
	}
	if flags == filterDestination {
		kind++ // the destination follows the source in both families
	}
	b := nest(nil, nl.CTA_TUPLE_ORIG, func(tuple []byte) []byte {
		return nest(tuple, nl.CTA_TUPLE_IP, func(ip []byte) []byte { return attr(ip, kind, a.AsSlice()) })
	})
	return nest(b, ctaFilter, func(f []byte) []byte { return native32(f, ctaFilterOrigFlags, flags) })
}

func parseTracked(msg []byte) (tracked, error) {
	attrs, err := nl.ParseRouteAttr(msg[min(genmsgLen, len(msg)):])
	if err != nil {
		return tracked{}, err
	}
	var c tracked
	for _, a := range attrs {
		switch kind := a.Attr.Type & attrType; kind {
		case nl.CTA_TUPLE_ORIG:
			var orig tuple
			if orig, err = parseTuple(a.Value); err != nil {
				return tracked{}, err
			}
			c.src, c.proto = orig.src, orig.proto
			c.key = attr(c.key, a.Attr.Type, a.Value)
		case nl.CTA_TUPLE_REPLY:
			var reply tuple
			if reply, err = parseTuple(a.Value); err != nil {
				return tracked{}, err
			}
			c.dst, c.port = reply.src, reply.sport
		case ctaID, ctaZone:
			c.key = attr(c.key, a.Attr.Type, a.Value)
		}
	}
	return c, nil
}

// tuple is one direction of a flow.
type tuple struct {
	src   netip.Addr
	proto uint8
	sport uint16
}

func parseTuple(b []byte) (tuple, error) {
	var t tuple
	parts, err := nl.ParseRouteAttr(b)
	if err != nil {
		return t, err
	}
	for _, part := range parts {
		values, err := nl.ParseRouteAttr(part.Value)
		if err != nil {
			return t, err
		}
		inIP := part.Attr.Type&attrType == nl.CTA_TUPLE_IP
		for _, v := range values {
			switch kind := int(v.Attr.Type & attrType); {
			case inIP && (kind == nl.CTA_IP_V4_SRC || kind == nl.CTA_IP_V6_SRC):
				t.src, _ = netip.AddrFromSlice(v.Value)
			case !inIP && kind == nl.CTA_PROTO_NUM && len(v.Value) == 1:
				t.proto = v.Value[0]
			case !inIP && kind == nl.CTA_PROTO_SRC_PORT && len(v.Value) == 2:
				t.sport = binary.BigEndian.Uint16(v.Value)
			}
		}
	}
	return t, nil
}
