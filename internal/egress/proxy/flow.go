package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// flow is one connection of a sandbox, from accept to its end.
type flow struct {
	proxy    *Proxy
	box      *box
	client   *net.TCPConn
	src      netip.Addr
	original netip.AddrPort // where the sandbox was connecting to
	began    time.Time
	// ctx ends when the flow is cut; dials under way stop with it.
	ctx    context.Context
	cancel context.CancelFunc

	// Guarded by box.mu:

	decided bool // it was judged, and does not count as undecided any more
	// to is where the flow goes now, and remote the address it is connected to,
	// once it is. An HTTP connection goes nowhere between two requests.
	to     destination
	remote netip.AddrPort
	// upstreams are the flow's connections, those that wait for a next request
	// included.
	upstreams map[*upstream]struct{}
	ended     *verdict // why the flow was cut; nil while it was not
}

// upstream is a connection to the internet that belongs to a flow.
type upstream struct {
	*net.TCPConn
	flow   *flow
	to     destination
	remote netip.AddrPort
}

// serve handles the connection to its end.
func (f *flow) serve() {
	defer f.leave()
	var err error
	if f.original, err = f.proxy.original(f.client); err != nil {
		f.proxy.log.Debug("connection without an original destination", "sandbox", f.box.sandbox, "err", err)
		f.refuseRaw(f.refusal(ruleMalformed, "the connection was made to the proxy itself"))
		return
	}
	_ = f.client.SetReadDeadline(f.began.Add(f.proxy.limits.Peek)) // fails only on a closed connection, as all of these
	switch f.original.Port() {
	case policy.PortHTTPS:
		f.serveTLS()
	case policy.PortHTTP:
		f.serveHTTP()
	default:
		f.refuseRaw(f.judge(policy.Name{}, fmt.Sprintf("names count on ports %d and %d only", policy.PortHTTP, policy.PortHTTPS)))
	}
}

func (f *flow) leave() {
	f.cancel()
	_ = f.client.Close()
	f.box.leave(f)
	f.proxy.boxes.release(f.box)
}

// judge decides about the flow by the policy that is in force now. If that
// allows it, the flow counts as going there until finish. The order matters:
// an update puts its policy where Tenants finds it and then looks at all
// flows. It finds this one, or this one finds the policy.
func (f *flow) judge(name policy.Name, why string) verdict {
	b := f.box
	b.mu.Lock()
	defer b.mu.Unlock()
	f.decide()
	t, err := f.tenant()
	if err != nil {
		v := decide(egress.Tenant{}, f.original, name, why)
		v.deny(ruleEnded, err.Error())
		return v
	}
	v := decide(t, f.original, name, why)
	f.to = v.to
	return v
}

// refusal refuses the flow for a reason that is no matter of policy.
func (f *flow) refusal(rule, reason string) verdict {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	f.decide()
	t, _ := f.tenant() // what has no tenant any more has no generation
	v := verdict{generation: t.Generation, id: audit.NewID()}
	v.deny(rule, reason)
	return v
}

// decide says that the flow does not count as undecided any more. The caller
// holds box.mu.
func (f *flow) decide() {
	if !f.decided {
		f.decided = true
		f.box.undecided--
	}
}

// tenant returns the flow's sandbox as it is now. The caller holds box.mu.
func (f *flow) tenant() (egress.Tenant, error) {
	t, ok := f.proxy.tenants.Tenant(f.src)
	if f.ended != nil || !ok || t.Sandbox != f.box.sandbox {
		return egress.Tenant{}, errEnded
	}
	return t, nil
}

// finish says that the flow goes nowhere any more. It returns why, if it was
// cut.
func (f *flow) finish() *verdict {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	f.to, f.remote = destination{}, netip.AddrPort{}
	return f.ended
}

// dialTimeout bounds a dial, looking the name up included.
const dialTimeout = 30 * time.Second

// dial connects to a destination.
func (f *flow) dial(to destination) (*upstream, error) {
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	defer cancel()
	var conn net.Conn
	var err error
	if to.name != (policy.Name{}) {
		conn, err = f.proxy.dialer.DialName(ctx, to.name.String(), to.addr.Port())
	} else {
		conn, err = f.proxy.dialer.DialAddr(ctx, to.addr)
	}
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the dialler gave a %T", conn), conn.Close())
	}
	return f.attach(tcp, to)
}

// attach makes a fresh connection known, so that the end of the flow finds it.
// That may have come while it was made.
func (f *flow) attach(conn *net.TCPConn, to destination) (*upstream, error) {
	up := &upstream{TCPConn: conn, flow: f, to: to, remote: addrOf(conn.RemoteAddr())}
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	if err := f.ctx.Err(); err != nil {
		reset(conn)
		return nil, err
	}
	if f.upstreams == nil {
		f.upstreams = make(map[*upstream]struct{}, 1)
	}
	f.upstreams[up] = struct{}{}
	return up, nil
}

// Close closes the connection.
func (u *upstream) Close() error {
	u.flow.box.mu.Lock()
	delete(u.flow.upstreams, u)
	u.flow.box.mu.Unlock()
	return u.TCPConn.Close()
}

// use says that the flow goes over this connection now.
func (u *upstream) use() {
	u.flow.box.mu.Lock()
	defer u.flow.box.mu.Unlock()
	u.flow.remote = u.remote
}

// reevaluate cuts the flow if the next policy denies where it goes, and what
// it keeps connected for later if that is denied. It reports whether the flow
// was cut. The caller holds box.mu.
func (f *flow) reevaluate(next egress.Tenant) bool {
	if f.ended != nil {
		return false
	}
	if f.to != (destination{}) && !permits(next.Policy, f.to, f.remote) {
		v := verdict{generation: next.Generation}
		v.set(f.to.judge(next.Policy), destination{})
		v.reason = "cut by an update of the policy: " + v.reason
		return f.cut(v)
	}
	for up := range f.upstreams {
		if !permits(next.Policy, up.to, up.remote) {
			reset(up.TCPConn)
		}
	}
	return false
}

// cut resets the flow's connections. It reports whether that was done now. The
// caller holds box.mu.
func (f *flow) cut(why verdict) bool {
	if f.ended != nil {
		return false
	}
	f.ended = &why
	f.cancel()
	reset(f.client)
	for up := range f.upstreams {
		reset(up.TCPConn)
	}
	return true
}
