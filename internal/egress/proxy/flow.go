package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
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
	// Neither is there, nor client, while the flow is a passage.
	ctx    context.Context
	cancel context.CancelFunc

	// Guarded by box.mu:

	passage *passage // while the flow is in a lane
	decided bool     // it was judged, and does not count as undecided any more
	// visits are what the flow does now. An HTTP connection does nothing between
	// two requests, and over HTTP/2 many things at a time.
	visits []*visit
	// upstreams are the flow's connections, those that wait for a next request
	// included.
	upstreams map[*upstream]struct{}
	ended     *verdict // why the flow was cut; nil while it was not
	leaving   bool     // it has come to its end: no more streams

	streams sync.WaitGroup // handlers of HTTP/2; added to with box.mu held and leaving not set
}

// upstream is a connection to the internet that belongs to a flow.
type upstream struct {
	*net.TCPConn
	flow   *flow
	to     destination
	policy *policy.Policy // under which it was made
	remote netip.AddrPort // not valid if it is not known
}

// depart takes the flow out of its lane, with a connection to go on with. It may
// have been cut meanwhile.
func (f *flow) depart(ctx context.Context, client *net.TCPConn) {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	f.passage, f.client = nil, client
	f.ctx, f.cancel = context.WithCancel(ctx)
	if f.ended != nil {
		f.cancel()
		reset(client)
	}
}

// serve handles a connection that does not begin with a ClientHello.
func (f *flow) serve() {
	_ = f.client.SetReadDeadline(f.began.Add(f.proxy.limits.Peek)) // fails only on a closed connection
	if f.webPort() == policy.PortHTTP {
		f.serveHTTP()
	} else {
		f.serveAny()
	}
}

// webPort returns as which port the connection's is read. Public URLs of this
// server may be at others than names count on elsewhere.
func (f *flow) webPort() uint16 {
	if port := f.original.Port(); port == policy.PortHTTP || port == policy.PortHTTPS {
		return port
	}
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	t, _ := f.tenant() // what has no tenant any more has no policy
	return t.Policy.WebPort(f.original)
}

// serveAny judges a connection to a port on which names do not count, by
// address.
func (f *flow) serveAny() {
	v := f.judge(question{why: fmt.Sprintf("names count on ports %d and %d only", policy.PortHTTP, policy.PortHTTPS)})
	if !v.allow {
		f.refuseRaw(v)
		return
	}
	f.forward(v, nil, audit.TCP)
}

func (f *flow) leave() {
	f.cancel()
	_ = f.client.Close()
	f.box.mu.Lock()
	f.leaving = true
	f.box.mu.Unlock()
	f.streams.Wait()
	f.leaveBox()
}

func (f *flow) leaveBox() {
	f.box.leave(f)
	f.proxy.boxes.release(f.box)
}

// judge decides about the flow by the policy that is in force now. If that
// allows it, the flow has a visit until finish. The order matters: an update
// puts its policy where Tenants finds it and then looks at all flows. It finds
// this one, or this one finds the policy.
func (f *flow) judge(q question) verdict {
	b := f.box
	b.mu.Lock()
	defer b.mu.Unlock()
	f.decide()
	t, err := f.tenant()
	if err != nil {
		v := decide(egress.Tenant{}, f.original, q)
		v.deny(ruleEnded, err.Error())
		return v
	}
	v := decide(t, f.original, q)
	if v.allow && !v.seen {
		v.visit = &visit{to: v.to, policy: t.Policy, request: q.request, action: v.action, cancel: q.cancel}
		if q.hello {
			v.visit.unseen = q.name
		}
		f.visits = append(f.visits, v.visit)
	}
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

// finish ends a visit; nil is none. It returns why, if it was cut.
func (f *flow) finish(v *visit) *verdict {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	if i := slices.Index(f.visits, v); i >= 0 {
		f.visits = slices.Delete(f.visits, i, i+1)
	}
	if v != nil && v.ended != nil {
		return v.ended
	}
	return f.ended
}

// dialTimeout bounds a dial, looking the name up included.
const dialTimeout = 30 * time.Second

// dial connects to a destination.
func (f *flow) dial(to destination) (*upstream, error) {
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	defer cancel()
	target, under, err := f.target(to)
	if err != nil {
		return nil, err
	}
	conn, remote, err := f.proxy.dial(ctx, target)
	if err != nil {
		return nil, err
	}
	return f.attach(&upstream{TCPConn: conn, flow: f, to: to, policy: under, remote: remote})
}

// target is where to dial for a destination, under the policy of now.
func (f *flow) target(to destination) (egress.Target, *policy.Policy, error) {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	t, err := f.tenant()
	if err != nil {
		return egress.Target{}, nil, err
	}
	return to.target(t.Policy, f.src), t.Policy, nil
}

// dial connects to a target. The remote address is not valid where it is not
// known.
func (p *Proxy) dial(ctx context.Context, t egress.Target) (*net.TCPConn, netip.AddrPort, error) {
	conn, remote, err := p.dialer.Dial(ctx, t)
	if err != nil {
		return nil, remote, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, remote, errors.Join(fmt.Errorf("the dialler gave a %T", conn), conn.Close())
	}
	return tcp, remote, nil
}

// attach makes a fresh connection known, so that the end of the flow finds it.
// That may have come while it was made.
func (f *flow) attach(up *upstream) (*upstream, error) {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	if err := f.ctx.Err(); err != nil {
		reset(up.TCPConn)
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

// reevaluate cuts what the flow does and the next policy denies, and what it
// keeps connected for later if that is denied. It reports whether anything was
// cut. The caller holds box.mu.
func (f *flow) reevaluate(next egress.Tenant) (cut bool) {
	if f.ended != nil {
		return false
	}
	for _, v := range f.visits {
		if why, permitted := v.judge(next); !permitted {
			why.reason = "cut by an update of the policy: " + why.reason
			cut = f.end(v, why) || cut
		}
	}
	for up := range f.upstreams {
		if !permits(next.Policy, up.to, up.remote) || !up.to.sameWay(up.policy, next.Policy) {
			reset(up.TCPConn)
		}
	}
	return cut
}

// cut resets the flow's connections. It reports whether that was done now. The
// caller holds box.mu.
func (f *flow) cut(why verdict) bool {
	if f.ended != nil {
		return false
	}
	f.ended = &why
	if f.passage != nil {
		f.passage.abort() // its lane sees that
		return true
	}
	f.cancel()
	reset(f.client)
	for up := range f.upstreams {
		reset(up.TCPConn)
	}
	for _, v := range f.visits {
		v.drop()
	}
	return true
}

// stop is cut for a reason that is no matter of policy.
func (f *flow) stop(reason string) {
	f.box.mu.Lock()
	defer f.box.mu.Unlock()
	f.cut(verdict{rule: ruleEnded, reason: reason})
}
