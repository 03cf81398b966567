package dns

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/policy"
)

// Where the names of addresses live.
const (
	reverse4 = ".in-addr.arpa"
	reverse6 = ".ip6.arpa"
)

// answerLocally answers that a name does not exist if it would be the name of
// an address that is never reachable, or is no whole address: the node's name
// servers may know the names of the operator's private network. It returns nil
// for all other questions.
func answerLocally(q question, never *policy.Never) *Answer {
	addr, isReverse := parseReverse(q.name.String())
	if !isReverse || !never.Contains(addr) {
		return nil
	}
	return &Answer{Rcode: wire.RcodeNameError, received: time.Now()}
}

// parseReverse reads a name like 1.0.0.10.in-addr.arpa. The address is not
// valid if the name is below one of the reverse trees, or their top, without
// being the name of an address.
func parseReverse(name string) (addr netip.Addr, isReverse bool) {
	if labels, ok := strings.CutSuffix("."+name, reverse4); ok {
		octets := strings.Split(strings.TrimPrefix(labels, "."), ".")
		slices.Reverse(octets)
		addr, _ = netip.ParseAddr(strings.Join(octets, "."))
		return addr, true
	}
	if labels, ok := strings.CutSuffix("."+name, reverse6); ok {
		nibbles := strings.Split(strings.TrimPrefix(labels, "."), ".")
		slices.Reverse(nibbles)
		bytes, err := hex.DecodeString(strings.Join(nibbles, ""))
		if err == nil && len(nibbles) == 2*len(bytes) && len(bytes) == 16 {
			addr = netip.AddrFrom16([16]byte(bytes))
		}
		return addr, true
	}
	return netip.Addr{}, false
}
