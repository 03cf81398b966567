package dial

import (
	"net/netip"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/socket"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Start begins to connect to the first address of a target and waits for
// nothing. It is false, and nothing has begun, where that is not enough: a name
// has to be asked for, a proxy to be taken, the way leads inwards, or no address
// will do. Dial knows what to do then, and what to say.
func (d *Dialer) Start(t egress.Target) (begun egress.Attempt, ok bool) {
	if t.Through != nil || t.Home != 0 {
		return begun, false
	}
	if t.Name == (policy.Name{}) {
		return d.begin(t.Addr)
	}
	addrs, known := d.resolver.Known(t.Name)
	if !known {
		return begun, false
	}
	if len(addrs) > 1 {
		addrs = order(addrs)
	}
	for i, addr := range addrs {
		if t.Permit != nil && !t.Permit(addr) {
			continue
		}
		// An address of a network that the node does not have fails at once.
		if begun, ok = d.begin(netip.AddrPortFrom(addr, t.Addr.Port())); ok {
			if i+1 < len(addrs) {
				begun.Patience = stagger
			}
			return begun, true
		}
	}
	return begun, false
}

// begin judges an address and begins to connect to it.
func (d *Dialer) begin(addr netip.AddrPort) (begun egress.Attempt, ok bool) {
	if egress.Judge(d.never, addr.Addr()) != nil {
		return begun, false
	}
	begun = egress.Attempt{Remote: addr, Patience: d.timeout}
	err := d.enter(func() (err error) {
		begun.FD, err = socket.Connect(addr)
		return err
	})
	if err != nil {
		return begun, false
	}
	local, err := socket.Local(begun.FD) // known as soon as the way there is
	if err == nil {
		err = d.elsewhere(local.Addr(), addr.Addr())
	}
	if err != nil {
		socket.Close(begun.FD)
		return begun, false
	}
	return begun, true
}
