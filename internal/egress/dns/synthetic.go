package dns

import (
	"container/list"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Names that a policy does not allow resolve to addresses of policy.Synthetic.
// What connects to one is refused, and the name it meant can be told.

const (
	// syntheticTTL is short: when a policy comes to allow a name, programs
	// should ask again soon.
	syntheticTTL = 30 * time.Second
	// syntheticLease is for how long an address is a name's: a reply is given
	// again for a moment without asking.
	syntheticLease = syntheticTTL + memoTime
	// maxSynthetic bounds the names of one sandbox. It is more than a sandbox
	// can ask for, at the default rate, before the first of them expires.
	maxSynthetic = 4096
)

// synthetic is the table of one sandbox's forbidden names. A name keeps its
// address for as long as it is in the table, and the address is given to no
// other name before it has expired. Its owner holds a lock.
type synthetic struct {
	limit  int
	byName map[string]*list.Element
	byAddr map[uint32]*list.Element // by offset in the range
	recent *list.List               // of *pretended, what expires next at the back
}

// pretended is a name that was answered with an address of ours.
type pretended struct {
	name    string
	offset  uint32
	expires time.Time
}

func newSynthetic() *synthetic {
	return &synthetic{
		limit:  maxSynthetic,
		byName: make(map[string]*list.Element),
		byAddr: make(map[uint32]*list.Element),
		recent: list.New(),
	}
}

// address returns the address that stands for a name from now on until
// syntheticLease has passed. It is false when all places are taken by names that
// have not expired.
func (t *synthetic) address(name string, now time.Time) (netip.Addr, bool) {
	if e := t.byName[name]; e != nil {
		p := e.Value.(*pretended)
		p.expires = now.Add(syntheticLease)
		t.recent.MoveToFront(e)
		return addressAt(p.offset), true
	}
	if len(t.byName) >= t.limit && !t.dropOldest(now) {
		return netip.Addr{}, false
	}
	p := &pretended{name: name, offset: t.free(name), expires: now.Add(syntheticLease)}
	e := t.recent.PushFront(p)
	t.byName[name], t.byAddr[p.offset] = e, e
	return addressAt(p.offset), true
}

// dropOldest makes room by forgetting the name that expired first, if any has.
func (t *synthetic) dropOldest(now time.Time) bool {
	e := t.recent.Back()
	p := e.Value.(*pretended)
	if now.Before(p.expires) {
		return false
	}
	t.recent.Remove(e)
	delete(t.byName, p.name)
	delete(t.byAddr, p.offset)
	return true
}

// free returns an offset that is not in use. It depends on the name, so that
// most names keep their address when the server starts anew. There is a free
// one: the table holds fewer names than the range has addresses.
func (t *synthetic) free(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	for offset := h.Sum32(); ; offset++ {
		offset %= addressCount
		// The first address looks like that of a network to some programs.
		if offset != 0 && t.byAddr[offset] == nil {
			return offset
		}
	}
}

// name returns the name that an address stands for, also after it has expired:
// programs keep addresses for longer than they should.
func (t *synthetic) name(addr netip.Addr) (string, bool) {
	if !policy.Synthetic().Contains(addr) {
		return "", false
	}
	e := t.byAddr[offsetOf(addr)]
	if e == nil {
		return "", false
	}
	return e.Value.(*pretended).name, true
}

// addressCount is the number of addresses in the range.
const addressCount = 1 << (32 - 17)

func addressAt(offset uint32) netip.Addr {
	base := policy.Synthetic().Addr().As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(base[:])+offset)))
}

func offsetOf(addr netip.Addr) uint32 {
	base, at := policy.Synthetic().Addr().As4(), addr.As4()
	return binary.BigEndian.Uint32(at[:]) - binary.BigEndian.Uint32(base[:])
}
