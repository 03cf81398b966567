package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// statement is one part of an nftables rule: the expressions that the kernel
// runs, and the text nft prints for them. A test holds both together by
// letting nft list what the kernel was given.
type statement struct {
	text  string
	exprs []expr.Any
}

// rule is a row of statements, run from left to right until one does not match.
type rule []statement

func (r rule) String() string {
	texts := make([]string, len(r))
	for i, s := range r {
		texts[i] = s.text
	}
	return strings.Join(texts, " ")
}

func part(text string, exprs ...expr.Any) statement { return statement{text: text, exprs: exprs} }

// reg is the register that all statements use; none depends on another's.
const reg = 1

func equal(data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func meta(key expr.MetaKey) *expr.Meta { return &expr.Meta{Key: key, Register: reg} }

func payload(base expr.PayloadBase, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
}

func mask(bits []byte) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(bits)), Mask: bits, Xor: make([]byte, len(bits))}
}

// inPrefix and outPrefix match every interface whose name begins so.
func inPrefix(prefix string) statement {
	return part(fmt.Sprintf(`iifname "%s*"`, prefix), meta(expr.MetaKeyIIFNAME), equal([]byte(prefix)))
}

func outPrefix(prefix string) statement {
	return part(fmt.Sprintf(`oifname "%s*"`, prefix), meta(expr.MetaKeyOIFNAME), equal([]byte(prefix)))
}

func notOutPrefix(prefix string) statement {
	return part(fmt.Sprintf(`oifname != "%s*"`, prefix),
		meta(expr.MetaKeyOIFNAME), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte(prefix)})
}

// notIn matches what came by any other interface.
func notIn(name string) statement {
	return part(fmt.Sprintf("iifname != %q", name),
		meta(expr.MetaKeyIIFNAME), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: ifName(name)})
}

// inMap and outMap leave the rest to the verdict that a map holds for the
// interface.
func inMap(name string) statement {
	return part("iifname vmap @"+name, meta(expr.MetaKeyIIFNAME), verdictOf(name))
}

func outMap(name string) statement {
	return part("oifname vmap @"+name, meta(expr.MetaKeyOIFNAME), verdictOf(name))
}

func verdictOf(name string) *expr.Lookup {
	return &expr.Lookup{SourceRegister: reg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: name}
}

// ofFamily4 and ofFamily6 begin statements that look into packets of one family.
func ofFamily4() []expr.Any {
	return []expr.Any{meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV4})}
}

func ofFamily6() []expr.Any {
	return []expr.Any{meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV6})}
}

// is4 and is6 match all packets of a family.
func is4() statement { return part("meta nfproto ipv4", ofFamily4()...) }
func is6() statement { return part("meta nfproto ipv6", ofFamily6()...) }

// toSet matches packets to an address in a set.
func toSet(s set) statement {
	lookup := &expr.Lookup{SourceRegister: reg, SetName: s.name}
	if s.v6 {
		return part("ip6 daddr @"+s.name, append(ofFamily6(), payload(expr.PayloadBaseNetworkHeader, 24, 16), lookup)...)
	}
	return part("ip daddr @"+s.name, append(ofFamily4(), payload(expr.PayloadBaseNetworkHeader, 16, 4), lookup)...)
}

// from and to match packets by the prefix that their source or destination
// lies in.
func from(p netip.Prefix) statement  { return address("saddr", 12, 8, p, "", expr.CmpOpEq) }
func to(p netip.Prefix) statement    { return address("daddr", 16, 24, p, "", expr.CmpOpEq) }
func notTo(p netip.Prefix) statement { return address("daddr", 16, 24, p, "!= ", expr.CmpOpNeq) }

// address matches one of the addresses in the header, at an offset that
// depends on the family.
func address(which string, offset4, offset6 uint32, p netip.Prefix, not string, op expr.CmpOp) statement {
	family, offset, load := "ip", offset4, ofFamily4()
	if p.Addr().Is6() {
		family, offset, load = "ip6", offset6, ofFamily6()
	}
	bits := p.Masked().Addr().AsSlice()
	return part(fmt.Sprintf("%s %s %s%v", family, which, not, p.Masked()), append(load,
		payload(expr.PayloadBaseNetworkHeader, offset, uint32(len(bits))),
		mask(net.CIDRMask(p.Bits(), p.Addr().BitLen())), &expr.Cmp{Op: op, Register: reg, Data: bits})...)
}

// toAddr matches packets to one address.
func toAddr(a netip.Addr) statement {
	family, offset, load := "ip", uint32(16), ofFamily4()
	if a.Is6() {
		family, offset, load = "ip6", 24, ofFamily6()
	}
	return part(fmt.Sprintf("%s daddr %v", family, a), append(load,
		payload(expr.PayloadBaseNetworkHeader, offset, uint32(a.BitLen()/8)), equal(a.AsSlice()))...)
}

// l4proto matches packets of a transport protocol, whatever extension headers
// come before it.
func l4proto(name string, number byte) statement {
	return part("meta l4proto "+name, meta(expr.MetaKeyL4PROTO), equal([]byte{number}))
}

func isTCP() statement { return l4proto("tcp", unix.IPPROTO_TCP) }

// tcpTo and udpTo match packets to a port, tcpToOther those of TCP to any other
// port, dport those of any protocol.
func tcpTo(port uint16) statement {
	return part(fmt.Sprintf("tcp dport %d", port), portIs(unix.IPPROTO_TCP, port, expr.CmpOpEq)...)
}

func tcpToOther(port uint16) statement {
	return part(fmt.Sprintf("tcp dport != %d", port), portIs(unix.IPPROTO_TCP, port, expr.CmpOpNeq)...)
}

func udpTo(port uint16) statement {
	return part(fmt.Sprintf("udp dport %d", port), portIs(unix.IPPROTO_UDP, port, expr.CmpOpEq)...)
}

func portIs(proto byte, port uint16, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		meta(expr.MetaKeyL4PROTO), equal([]byte{proto}),
		payload(expr.PayloadBaseTransportHeader, 2, 2),
		&expr.Cmp{Op: op, Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

func dport(port uint16) statement {
	return part(fmt.Sprintf("th dport %d", port),
		payload(expr.PayloadBaseTransportHeader, 2, 2), equal(binaryutil.BigEndian.PutUint16(port)))
}

// icmp4 and icmp6 match ICMP messages of one type.
func icmp4(name string, number byte) statement {
	return part("icmp type "+name, append(ofFamily4(), icmp(unix.IPPROTO_ICMP, number)...)...)
}

func icmp6(name string, number byte) statement {
	return part("icmpv6 type "+name, append(ofFamily6(), icmp(unix.IPPROTO_ICMPV6, number)...)...)
}

func icmp(proto, kind byte) []expr.Any {
	return []expr.Any{
		meta(expr.MetaKeyL4PROTO), equal([]byte{proto}),
		payload(expr.PayloadBaseTransportHeader, 0, 1), equal([]byte{kind}),
	}
}

func ctState(name string, bits uint32) statement {
	return part("ct state "+name,
		&expr.Ct{Register: reg, Key: expr.CtKeySTATE},
		mask(binaryutil.NativeEndian.PutUint32(bits)),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)})
}

// ctReply matches packets that answer the side which began the flow.
func ctReply() statement {
	return part("ct direction reply", &expr.Ct{Register: reg, Key: expr.CtKeyDIRECTION}, equal([]byte{1}))
}

// ctRedirected matches packets of flows whose destination was rewritten.
func ctRedirected() statement {
	const dstNAT = 1 << 5 // IPS_DST_NAT
	return part("ct status dnat",
		&expr.Ct{Register: reg, Key: expr.CtKeySTATUS},
		mask(binaryutil.NativeEndian.PutUint32(dstNAT)),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)})
}

// frame matches a frame by both its addresses and its ethertype, which nft
// shows only through what follows. A VLAN tag changes the ethertype, also when
// the card has already taken the tag off.
func frame(src, dst net.HardwareAddr, ethertype uint16) statement {
	return part(fmt.Sprintf("ether saddr %v ether daddr %v", src, dst),
		meta(expr.MetaKeyIIFTYPE), equal(binaryutil.NativeEndian.PutUint16(unix.ARPHRD_ETHER)),
		payload(expr.PayloadBaseLLHeader, 6, 6), equal(src),
		payload(expr.PayloadBaseLLHeader, 0, 6), equal(dst),
		payload(expr.PayloadBaseLLHeader, 12, 2), equal(binaryutil.BigEndian.PutUint16(ethertype)))
}

// plainFrom4 matches IPv4 packets with one source address and no options.
func plainFrom4(a netip.Addr) statement {
	return part(fmt.Sprintf("ip hdrlength 5 ip saddr %v", a),
		payload(expr.PayloadBaseNetworkHeader, 0, 1), mask([]byte{0x0f}), equal([]byte{5}),
		payload(expr.PayloadBaseNetworkHeader, 12, 4), equal(a.AsSlice()))
}

func from6(a netip.Addr) statement {
	return part(fmt.Sprintf("ip6 saddr %v", a), payload(expr.PayloadBaseNetworkHeader, 8, 16), equal(a.AsSlice()))
}

// nextHeader6 matches what directly follows the IPv6 header.
func nextHeader6(name string, number byte) statement {
	return part("ip6 nexthdr "+name,
		meta(expr.MetaKeyPROTOCOL), equal(binaryutil.BigEndian.PutUint16(unix.ETH_P_IPV6)),
		payload(expr.PayloadBaseNetworkHeader, 6, 1), equal([]byte{number}))
}

// limitOver matches what exceeds a rate, in packets per second.
func limitOver(rate uint64, burst uint32) statement {
	return part(fmt.Sprintf("limit rate over %d/second burst %d packets", rate, burst),
		&expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Burst: burst, Unit: expr.LimitTimeSecond, Over: true})
}

// meterOver matches what exceeds a rate, in packets per second of each interface.
func meterOver(meter string, rate uint64, burst uint32) statement {
	over := limitOver(rate, burst)
	return part(fmt.Sprintf("update @%s { iifname %s }", meter, over.text),
		meta(expr.MetaKeyIIFNAME),
		&expr.Dynset{SrcRegKey: reg, SetName: meter, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: over.exprs})
}

// meterFlowsOver matches what begins a flow when its interface has so many.
func meterFlowsOver(meter string, most uint32) statement {
	return part(fmt.Sprintf("add @%s { iifname ct count over %d }", meter, most),
		meta(expr.MetaKeyIIFNAME),
		&expr.Dynset{SrcRegKey: reg, SetName: meter, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{
			&expr.Connlimit{Count: most, Flags: expr.NFT_CONNLIMIT_F_INV},
		}})
}

// logTo tells of the packet, by its first bytes, to whoever has bound a group of
// the packet log.
func logTo(group uint16, head uint32) statement {
	const key = 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN
	return part(fmt.Sprintf("log group %d snaplen %d", group, head),
		&expr.Log{Key: key, Group: group, Snaplen: head})
}

// synOnly matches the first packet of either direction of a TCP connection.
func synOnly() statement {
	return part("tcp flags syn / syn,rst",
		meta(expr.MetaKeyL4PROTO), equal([]byte{unix.IPPROTO_TCP}),
		payload(expr.PayloadBaseTransportHeader, 13, 1), mask([]byte{0x06}), equal([]byte{0x02}))
}

// clampMSS lowers the segment size a TCP peer is told to what the route takes.
func clampMSS() statement {
	const mssOption, valueOffset, valueLength = 2, 2, 2
	return part("tcp option maxseg size set rt mtu",
		&expr.Rt{Register: reg, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: valueLength, Size: valueLength},
		&expr.Exthdr{SourceRegister: reg, Op: expr.ExthdrOpTcpopt, Type: mssOption, Offset: valueOffset, Len: valueLength})
}

func counter() statement { return part("counter", &expr.Counter{}) }

func accept() statement { return verdict("accept", expr.VerdictAccept, "") }
func drop() statement   { return verdict("drop", expr.VerdictDrop, "") }

// goTo leaves the chain for another one and does not come back.
func goTo(chain string) statement { return verdict("goto "+chain, expr.VerdictGoto, chain) }

func verdict(text string, kind expr.VerdictKind, chain string) statement {
	return part(text, &expr.Verdict{Kind: kind, Chain: chain})
}

func resetTCP() statement {
	return part("reject with tcp reset", &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

func prohibit() statement {
	return part("reject with icmpx admin-prohibited",
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
}

func masquerade() statement { return part("masquerade", &expr.Masq{}) }

// redirect sends a flow to another address and port than it was going to.
func redirect(a netip.Addr, port uint16) statement {
	family, to := uint32(unix.NFPROTO_IPV4), fmt.Sprintf("ip to %v", netip.AddrPortFrom(a, port))
	if a.Is6() {
		family, to = unix.NFPROTO_IPV6, fmt.Sprintf("ip6 to %v", netip.AddrPortFrom(a, port))
	}
	const portReg = reg + 1
	return part("dnat "+to,
		&expr.Immediate{Register: reg, Data: a.AsSlice()},
		&expr.Immediate{Register: portReg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: reg, RegProtoMin: portReg, Specified: true})
}
