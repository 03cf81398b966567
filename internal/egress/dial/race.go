package dial

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// order returns the addresses in the order to try them: IPv6 and IPv4 in turn,
// beginning with IPv6 (RFC 8305, section 4).
func order(addrs []netip.Addr) []netip.Addr {
	var six, four []netip.Addr
	for _, addr := range addrs {
		if addr.Is4() {
			four = append(four, addr)
		} else {
			six = append(six, addr)
		}
	}
	ordered := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(six), len(four)) {
		if i < len(six) {
			ordered = append(ordered, six[i])
		}
		if i < len(four) {
			ordered = append(ordered, four[i])
		}
	}
	return ordered[:min(len(ordered), maxAttempts)]
}

// attempt is how a connect ended.
type attempt struct {
	conn *net.TCPConn
	err  error
}

// race tries the addresses, of which there is at least one, one after the other
// and returns the first connection, or the first telling error if none succeeds.
// An address that has failed is followed by the others, and one that has not
// answered after a while joined by them. The attempts that lost are cancelled;
// each ends by itself then.
//
// The first attempt is made right here: nearly always it is the only one.
func (d *Dialer) race(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error) {
	addr, others := netip.AddrPortFrom(addrs[0], port), addrs[1:]
	if len(others) == 0 {
		return d.connect(ctx, addr)
	}
	own, giveUp := context.WithCancel(ctx)
	defer giveUp()
	theirs, cancel := context.WithCancel(ctx)
	defer cancel()
	joined := make(chan attempt, 1)
	company := time.AfterFunc(stagger, func() {
		conn, err := d.race(theirs, others, port)
		if err == nil {
			giveUp()
		}
		joined <- attempt{conn, err}
	})
	conn, err := d.connect(own, addr)
	alone := company.Stop()
	if err == nil {
		if !alone {
			go discard(joined)
		}
		return conn, nil
	}
	var rest attempt
	if alone {
		rest.conn, rest.err = d.race(ctx, others, port)
	} else {
		rest = <-joined
	}
	// That the node has no IPv6 says less than what IPv4 came to.
	if rest.err != nil && kindOf(err) != Unreachable {
		rest.err = err
	}
	return rest.conn, rest.err
}

// discard closes a connection that came too late.
func discard(joined <-chan attempt) {
	if late := <-joined; late.conn != nil {
		late.conn.Close()
	}
}
