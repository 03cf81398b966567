package kernel

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// transaction collects changes to nftables tables that the kernel makes all
// together or not at all. Later changes see the earlier ones.
//
// The messages are written here rather than by nftables.Conn because three
// things matter that it does not offer: tables that belong to this process, sets
// of any size (one message holds about a thousand elements), and thousands of
// rules in one batch.
type transaction struct {
	buf  []byte
	last int      // where the latest message begins in buf
	what []string // describes message i, for errors
	sets uint32   // ids given to sets in this transaction
	err  error    // the first that occurred while encoding
}

// Message framing of nfnetlink.
const (
	headerLen   = unix.SizeofNlMsghdr
	flagsOffset = 6 // in struct nlmsghdr
	genmsgLen   = 4 // struct nfgenmsg
)

const (
	inetFamily   = unix.NFPROTO_INET
	netdevFamily = unix.NFPROTO_NETDEV
)

// newTransaction begins a batch. Message 0 is its opening mark.
func newTransaction() *transaction {
	t := &transaction{}
	t.frame(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, "begin", nil)
	return t
}

// bytes closes the batch and returns it. The sequence number of a message is
// its place in the batch; the kernel confirms the last change.
func (t *transaction) bytes() ([]byte, error) {
	flags := t.buf[t.last+flagsOffset:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	t.frame(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, "commit", nil)
	return t.buf, t.err
}

// empty reports whether there is nothing to change.
func (t *transaction) empty() bool { return len(t.what) == 1 }

func (t *transaction) frame(kind, flags uint16, family byte, resource uint16, what string, attributes []byte) {
	t.last = len(t.buf)
	t.buf = appendMessage(t.buf, kind, flags, uint32(len(t.what)), family, resource, attributes)
	t.what = append(t.what, what)
}

func (t *transaction) message(kind, flags uint16, family byte, what string, attributes []byte) {
	t.frame(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, family, 0, what, attributes)
}

// appendMessage appends a request to nfnetlink. Attributes are padded already.
func appendMessage(b []byte, kind, flags uint16, seq uint32, family byte, resource uint16, attributes []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(headerLen+genmsgLen+len(attributes)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // the kernel fills in the port
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, attributes...)
}

func (t *transaction) addTable(family byte, table string, flags uint32) {
	a := str(nil, unix.NFTA_TABLE_NAME, table)
	a = be32(a, unix.NFTA_TABLE_FLAGS, flags)
	t.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, family, "add table "+table, a)
}

func (t *transaction) deleteTable(family byte, table string) {
	t.message(unix.NFT_MSG_DELTABLE, 0, family, "delete table "+table, str(nil, unix.NFTA_TABLE_NAME, table))
}

func (t *transaction) addChain(family byte, table string, c chain) {
	a := str(nil, unix.NFTA_CHAIN_TABLE, table)
	a = str(a, unix.NFTA_CHAIN_NAME, c.name)
	if c.base != nil {
		a = nest(a, unix.NFTA_CHAIN_HOOK, func(h []byte) []byte {
			h = be32(h, unix.NFTA_HOOK_HOOKNUM, c.base.hooknum)
			h = be32(h, unix.NFTA_HOOK_PRIORITY, uint32(c.base.priority))
			if c.base.device != "" {
				h = str(h, unix.NFTA_HOOK_DEV, c.base.device)
			}
			return h
		})
		a = be32(a, unix.NFTA_CHAIN_POLICY, uint32(expr.VerdictAccept))
		a = str(a, unix.NFTA_CHAIN_TYPE, c.base.kind)
	}
	t.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL, family, "add chain "+c.name, a)
}

func (t *transaction) deleteChain(family byte, table, name string) {
	a := str(nil, unix.NFTA_CHAIN_TABLE, table)
	a = str(a, unix.NFTA_CHAIN_NAME, name)
	t.message(unix.NFT_MSG_DELCHAIN, 0, family, "delete chain "+name, a)
}

// flushChain removes all rules of a chain.
func (t *transaction) flushChain(family byte, table, name string) {
	a := str(nil, unix.NFTA_RULE_TABLE, table)
	a = str(a, unix.NFTA_RULE_CHAIN, name)
	t.message(unix.NFT_MSG_DELRULE, 0, family, "flush chain "+name, a)
}

// addRules appends the rules of a chain. The comment, if any, goes with each.
func (t *transaction) addRules(family byte, table string, c chain, comment string) {
	for i, r := range c.rules {
		a := str(nil, unix.NFTA_RULE_TABLE, table)
		a = str(a, unix.NFTA_RULE_CHAIN, c.name)
		a = nest(a, unix.NFTA_RULE_EXPRESSIONS, func(list []byte) []byte {
			for _, s := range r {
				for _, e := range s.exprs {
					list = attr(list, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, t.marshal(family, e))
				}
			}
			return list
		})
		if comment != "" {
			a = attr(a, unix.NFTA_RULE_USERDATA, userdata.AppendString(nil, userdata.TypeComment, comment))
		}
		t.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, family, fmt.Sprintf("add rule %d to chain %s", i+1, c.name), a)
	}
}

func (t *transaction) marshal(family byte, e expr.Any) []byte {
	data, err := expr.Marshal(family, e)
	if err != nil && t.err == nil {
		t.err = fmt.Errorf("encode %T: %w", e, err)
	}
	return data
}

// Key types as nft numbers them, so that it can print the sets, and lengths in
// bytes.
const (
	keyIP4, keyIP4Len       = 7, 4
	keyIP6, keyIP6Len       = 8, 16
	keyIfName, keyIfNameLen = 41, unix.IFNAMSIZ
	verdictType             = 0xffffff00
)

// addMap adds an empty map from interface names to verdicts.
func (t *transaction) addMap(table, name string) {
	a := t.setHead(table, name, unix.NFT_SET_MAP, keyIfName, keyIfNameLen)
	a = be32(a, unix.NFTA_SET_DATA_TYPE, verdictType)
	// Names are strings in the host's byte order; nft needs to know to print them.
	a = attr(a, unix.NFTA_SET_USERDATA, userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, 1))
	t.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL, inetFamily, "add map "+name, a)
}

// addMeter adds an empty meter.
func (t *transaction) addMeter(table string, m meter) {
	flags := uint32(unix.NFT_SET_EVAL)
	if m.timeout != 0 {
		flags |= unix.NFT_SET_TIMEOUT
	}
	a := t.setHead(table, m.name, flags, keyIfName, keyIfNameLen)
	if m.timeout != 0 {
		a = attr(a, unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(m.timeout.Milliseconds())))
	}
	a = nest(a, unix.NFTA_SET_DESC, func(d []byte) []byte { return be32(d, unix.NFTA_SET_DESC_SIZE, meterSize) })
	a = attr(a, unix.NFTA_SET_USERDATA, userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, 1))
	t.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL, inetFamily, "add meter "+m.name, a)
}

// addSet adds a set with its addresses.
func (t *transaction) addSet(table string, s set) {
	kind, length := uint32(keyIP4), uint32(keyIP4Len)
	if s.v6 {
		kind, length = keyIP6, keyIP6Len
	}
	a := t.setHead(table, s.name, unix.NFT_SET_INTERVAL, kind, length)
	t.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL, inetFamily, "add set "+s.name, a)
	for ranges := s.ranges; len(ranges) > 0; {
		n := min(len(ranges), maxRanges)
		a := nest(elementHead(table, s.name), unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list []byte) []byte {
			for _, r := range ranges[:n] {
				list = interval(list, r)
			}
			return list
		})
		t.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, inetFamily, "fill set "+s.name, a)
		ranges = ranges[n:]
	}
}

// maxRanges in one message: an attribute holds at most 64 KiB, and a range of
// IPv6 addresses takes 28 bytes for its beginning and 36 for its end.
const maxRanges = 1000

func (t *transaction) deleteSet(table, name string) {
	a := str(nil, unix.NFTA_SET_TABLE, table)
	a = str(a, unix.NFTA_SET_NAME, name)
	t.message(unix.NFT_MSG_DELSET, 0, inetFamily, "delete set "+name, a)
}

func (t *transaction) setHead(table, name string, flags, keyType, keyLen uint32) []byte {
	t.sets++
	a := str(nil, unix.NFTA_SET_TABLE, table)
	a = str(a, unix.NFTA_SET_NAME, name)
	a = be32(a, unix.NFTA_SET_FLAGS, flags)
	a = be32(a, unix.NFTA_SET_KEY_TYPE, keyType)
	a = be32(a, unix.NFTA_SET_KEY_LEN, keyLen)
	return be32(a, unix.NFTA_SET_ID, t.sets)
}

// interval writes a range as its first address and the first one behind it. A
// range that ends with the address space has no end.
func interval(list []byte, r netipx.IPRange) []byte {
	list = nest(list, unix.NFTA_LIST_ELEM, func(e []byte) []byte {
		return element(e, r.From().AsSlice())
	})
	behind := r.To().Next()
	if !behind.IsValid() {
		return list
	}
	return nest(list, unix.NFTA_LIST_ELEM, func(e []byte) []byte {
		return be32(element(e, behind.AsSlice()), unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	})
}

// route adds the way from an interface to a chain to a map; unroute removes it.
func (t *transaction) route(table, name, device, chain string) {
	a := nest(elementHead(table, name), unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list []byte) []byte {
		return nest(list, unix.NFTA_LIST_ELEM, func(e []byte) []byte {
			return nest(element(e, ifName(device)), unix.NFTA_SET_ELEM_DATA, func(d []byte) []byte {
				return nest(d, unix.NFTA_DATA_VERDICT, func(v []byte) []byte {
					kind := int32(expr.VerdictGoto)
					return str(be32(v, unix.NFTA_VERDICT_CODE, uint32(kind)), unix.NFTA_VERDICT_CHAIN, chain)
				})
			})
		})
	})
	t.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, inetFamily, "route "+device+" to chain "+chain, a)
}

func (t *transaction) unroute(table, name, device string) {
	a := nest(elementHead(table, name), unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list []byte) []byte {
		return nest(list, unix.NFTA_LIST_ELEM, func(e []byte) []byte { return element(e, ifName(device)) })
	})
	t.message(unix.NFT_MSG_DELSETELEM, 0, inetFamily, "remove "+device+" from map "+name, a)
}

func elementHead(table, set string) []byte {
	a := str(nil, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	return str(a, unix.NFTA_SET_ELEM_LIST_SET, set)
}

func element(e, key []byte) []byte {
	return nest(e, unix.NFTA_SET_ELEM_KEY, func(k []byte) []byte { return attr(k, unix.NFTA_DATA_VALUE, key) })
}

func ifName(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}
