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

// race tries the addresses one after the other and returns the first
// connection, or the first telling error if none succeeds. An address gets
// company when it has not answered after a while, and a successor when it has failed.
// The attempts that lost are cancelled; each ends by itself then.
func (d *Dialer) race(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Has room for all, so that nobody waits to deliver.
	ended := make(chan attempt, len(addrs))
	next := time.NewTimer(0)
	defer next.Stop()
	var first error
	for running, left := 0, addrs; running > 0 || len(left) > 0; {
		start := next.C
		if len(left) == 0 {
			start = nil
		}
		select {
		case <-start:
			addr := netip.AddrPortFrom(left[0], port)
			left = left[1:]
			running++
			go func() {
				conn, err := d.connect(ctx, addr)
				ended <- attempt{conn, err}
			}()
			next.Reset(stagger)
		case a := <-ended:
			running--
			if a.err == nil {
				go discard(ended, running)
				return a.conn, nil
			}
			// That the node has no IPv6 says less than what IPv4 came to.
			if first == nil || kindOf(first) == Unreachable {
				first = a.err
			}
			next.Reset(0)
		}
	}
	return nil, first
}

// discard closes the connections that came too late.
func discard(ended <-chan attempt, running int) {
	for range running {
		if a := <-ended; a.conn != nil {
			a.conn.Close()
		}
	}
}
