package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/moat-sandbox/moat/internal/policy"
)

// layout derives every name and address of a slot from its index, so that a
// slot can be found again by its number alone.
type layout struct {
	instance       string
	stateDir       string
	range4, range6 netip.Prefix
	doors          Doors
	names          PublicNames
}

var instanceName = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

func newLayout(instance, stateDir string, range4, range6 netip.Prefix) (layout, error) {
	l := layout{instance: instance, stateDir: stateDir, range4: range4.Masked(), range6: range6.Masked(), doors: theDoors()}
	switch {
	case !instanceName.MatchString(instance):
		return l, fmt.Errorf("instance %q: want 1 to 8 lower-case letters and digits", instance)
	case !filepath.IsAbs(stateDir):
		return l, fmt.Errorf("state directory %q: want an absolute path", stateDir)
	case !range4.Addr().Is4(), range4.Bits() > 30:
		return l, fmt.Errorf("range %v: want an IPv4 prefix of at most 30 bits", range4)
	case !range6.Addr().Is6(), range6.Addr().Is4In6(), range6.Bits() < 64, range6.Bits() > 126:
		return l, fmt.Errorf("range %v: want an IPv6 prefix of 64 to 126 bits", range6)
	}
	for _, a := range []netip.Addr{l.doors.Addr4, l.doors.Addr6, policy.Synthetic().Addr()} {
		if l.owns(a) {
			return l, fmt.Errorf("ranges %v and %v: %v is needed for the proxy and the resolver", range4, range6, a)
		}
	}
	return l, nil
}

// maxIndex is the highest slot number: each slot takes two addresses of both
// ranges, and a number of at most five digits fits into an interface name.
// Number 0 is never used, so that the zero Slot is none.
func (l layout) maxIndex() int {
	fit := min(31-l.range4.Bits(), 127-l.range6.Bits(), 20)
	return min(1<<fit-1, 99_999)
}

// slot returns the slot with a number, whether it exists or not.
func (l layout) slot(index int) (Slot, error) {
	if index < 1 || index > l.maxIndex() {
		return Slot{}, fmt.Errorf("slot %d: want a number from 1 to %d", index, l.maxIndex())
	}
	return Slot{
		Index:      index,
		NetNS:      filepath.Join(l.stateDir, fmt.Sprintf("slot-%d", index)),
		HostIf:     l.ifPrefix() + strconv.Itoa(index),
		Gateway4:   nth(l.range4, 2*index),
		IP4:        nth(l.range4, 2*index+1),
		Gateway6:   nth(l.range6, 2*index),
		IP6:        nth(l.range6, 2*index+1),
		GatewayMAC: mac(1, index),
		MAC:        mac(2, index),
	}, nil
}

// owns reports whether an address is in the ranges of the slots.
func (l layout) owns(a netip.Addr) bool { return l.range4.Contains(a) || l.range6.Contains(a) }

// indexOf returns the number of the slot whose sandbox has an address.
func (l layout) indexOf(a netip.Addr) (int, bool) {
	if !l.owns(a) {
		return 0, false
	}
	first, own := l.range4.Addr(), a
	if a.Is6() {
		first = l.range6.Addr()
	}
	offset := binary.BigEndian.Uint32(own.AsSlice()[own.BitLen()/8-4:]) - binary.BigEndian.Uint32(first.AsSlice()[first.BitLen()/8-4:])
	index := int(offset / 2)
	return index, offset%2 == 1 && index >= 1 && index <= l.maxIndex()
}

// ifPrefix begins the names of all host interfaces of this instance, and of
// nothing else.
func (l layout) ifPrefix() string { return "m" + l.instance + "-" }

// table is the name of the instance's nftables tables.
func (l layout) table() string { return "moat_" + l.instance }

// indexOfIf returns the slot number that an interface name carries.
func (l layout) indexOfIf(name string) (int, bool) { return l.indexAfter(l.ifPrefix(), name) }

// indexOfFile returns the slot number that a file in the state directory carries.
func (l layout) indexOfFile(name string) (int, bool) { return l.indexAfter("slot-", name) }

func (l layout) indexAfter(prefix, name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	index, err := strconv.Atoi(digits)
	if !ok || err != nil || strconv.Itoa(index) != digits || index < 1 || index > l.maxIndex() {
		return 0, false
	}
	return index, true
}

// nth returns the n-th address of a prefix whose low 32 bits have room for it.
func nth(p netip.Prefix, n int) netip.Addr {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(n))
		return netip.AddrFrom4(a)
	}
	a := p.Addr().As16()
	binary.BigEndian.PutUint64(a[8:], binary.BigEndian.Uint64(a[8:])+uint64(n))
	return netip.AddrFrom16(a)
}

// mac returns a locally administered address: "mo" for moat, which end of the
// pair, and the slot's number.
func mac(end byte, index int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 'm', 'o', end<<4 | byte(index>>16), byte(index >> 8), byte(index)}
}
