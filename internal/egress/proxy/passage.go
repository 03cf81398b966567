package proxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/proxy/hello"
	"github.com/moat-sandbox/moat/internal/egress/socket"
	"github.com/moat-sandbox/moat/internal/policy"
)

// passage is a flow in a lane. It peeks until there is a verdict, then connects,
// then copies. Nobody but the lane's goroutine uses it, except for cut.
type passage struct {
	lane *lane
	flow *flow
	// The descriptors are closed, and become -1, with box.mu held.
	client, server int

	until   time.Time // when it has waited for too long; zero: it may wait
	hello   hello.Reader
	first   []byte // that the client has sent; nil once it was passed on
	pending bool   // the client has sent more than that, or has ended
	verdict verdict
	remote  netip.AddrPort // of the server
	// What was read and not passed on is never left in these: the flow moves on
	// with it.
	up, down half
}

const (
	// settled is when a connection that lives on is worth keeping alive.
	settled = 30 * time.Second
	// moveBytes is how much a lane copies of a flow. To have the kernel copy what
	// comes after that costs less, but a goroutine, and pipes.
	moveBytes = 256 << 10
	// somethingToRead are the events after which reading does not fail with EAGAIN.
	somethingToRead = unix.EPOLLIN | anEnd
	// anEnd are those after which there is an end or an error to be read.
	anEnd = unix.EPOLLRDHUP | gone
	gone  = unix.EPOLLHUP | unix.EPOLLERR
)

// begin decides what to do with a new connection.
func (p *passage) begin(src netip.AddrPort) {
	f := p.flow
	var err error
	f.original, err = f.proxy.original(p.client, src)
	switch {
	case err != nil:
		f.proxy.log.Debug("connection without an original destination", "sandbox", f.box.sandbox, "err", err)
		p.leave(func() { f.refuseRaw(f.refusal(ruleMalformed, "the connection was made to the proxy itself")) })
	case f.webPort() != policy.PortHTTPS:
		p.leave(f.serve)
	default:
		p.first = p.lane.buffer()
		if p.watch(p.client, unix.EPOLLIN) {
			p.wait(f.began.Add(f.proxy.limits.Peek))
		}
	}
}

// watch has the lane call advance when something happens to a descriptor. It
// reports whether the passage goes on.
func (p *passage) watch(fd int, events uint32) bool {
	if err := p.lane.watch(fd, events|unix.EPOLLRDHUP|unix.EPOLLET); err != nil {
		p.lose(err)
		return false
	}
	p.lane.passages[fd] = p
	return true
}

// wait says when the passage has waited for too long.
func (p *passage) wait(until time.Time) {
	p.until = until
	p.lane.remember(until)
}

// advance does what events on a descriptor make possible.
func (p *passage) advance(fd int, events uint32) {
	ending := events&anEnd != 0
	switch {
	case p.server < 0:
		p.peek(ending)
	case p.first != nil && fd == p.client:
		p.pending = true
	case p.first != nil:
		if p.send() && events&somethingToRead != 0 {
			p.copyDown(ending)
		}
	case events&gone != 0 && p.from(fd).ended: // it cannot even receive any more
		p.breakOff()
	case events&somethingToRead == 0: // there is room to write, which nobody waits for
	case fd == p.client:
		p.copyUp(ending)
	default:
		p.copyDown(ending)
	}
}

// from is the direction that comes from a descriptor.
func (p *passage) from(fd int) *half {
	if fd == p.client {
		return &p.up
	}
	return &p.down
}

// overdue is called when the passage has waited for too long.
func (p *passage) overdue() {
	p.until = time.Time{}
	switch {
	case p.server < 0:
		p.judge(context.DeadlineExceeded)
	case p.first != nil:
		p.tryOthers()
	default:
		_ = socket.SetKeepAlive(p.server) // fails only if it has ended
	}
}

// peek reads until the name is known, or cannot become so.
func (p *passage) peek(ending bool) {
	for {
		if len(p.first) == cap(p.first) {
			p.first = append(p.first, 0)[:len(p.first)]
		}
		had := len(p.first)
		n, err := socket.Read(p.client, p.first[had:cap(p.first)])
		switch {
		case err == unix.EAGAIN:
			return
		case err == nil && n == 0:
			err = io.EOF
		}
		p.first = p.first[:had+n]
		if p.hello.Write(p.first[had:]) || err != nil {
			p.pending = ending || len(p.first) == cap(p.first)
			p.judge(err)
			return
		}
	}
}

// judge goes on as the policy says about the name in the ClientHello. Failed is
// why no more of that can be read, if so.
func (p *passage) judge(failed error) {
	f := p.flow
	o := f.open(&p.hello, p.first, failed)
	p.hello = hello.Reader{} // which holds a copy of it all
	p.verdict = f.judge(question{name: o.name, why: o.why, hello: true})
	if p.verdict.seen || !p.verdict.allow || !p.connect() {
		p.proceed(o)
	}
}

// proceed leaves what was decided to a goroutine.
func (p *passage) proceed(o opening) {
	f, v := p.flow, p.verdict
	p.leave(func() { f.proceed(v, o) })
}

// connect begins to connect to where the flow may go. It is false, and nothing
// has happened, if the dialler has to do that.
func (p *passage) connect() (begun bool) {
	f := p.flow
	target, _, err := f.target(p.verdict.to)
	if err != nil {
		return false
	}
	attempt, ok := f.proxy.dialer.Start(target)
	if !ok {
		return false
	}
	p.attach(attempt)
	if !f.leads(p.verdict.visit, p.remote, nil) {
		p.finish()
		return true
	}
	p.wait(time.Now().Add(attempt.Patience))
	p.send() // near servers have answered by now
	return true
}

// attach makes the server's connection known, so that a cut finds it. There may
// have been one while it was made.
func (p *passage) attach(attempt egress.Attempt) {
	p.flow.box.mu.Lock()
	defer p.flow.box.mu.Unlock()
	p.remote, p.server = attempt.Remote, attempt.FD
	if p.flow.ended != nil {
		socket.Abort(p.server)
	}
}

// send passes on what was peeked, if the server is connected, and reports
// whether that was done.
func (p *passage) send() (done bool) {
	n, err := socket.Write(p.server, p.first)
	if err != nil && err != unix.EAGAIN {
		p.tryOthers()
		return false
	}
	if err != nil {
		if p.lane.passages[p.server] == nil {
			p.watch(p.server, unix.EPOLLIN|unix.EPOLLOUT)
		}
		return false
	}
	p.up.copied = int64(n)
	if n < len(p.first) {
		p.up.rest = p.first[n:]
		p.move()
		return false
	}
	p.lane.recycle(p.first)
	p.first = nil
	p.wait(p.flow.began.Add(settled))
	if p.lane.passages[p.server] == nil && !p.watch(p.server, unix.EPOLLIN) {
		return false
	}
	return !p.pending || p.copyUp(true)
}

// tryOthers leaves it to the dialler to connect, to the same address once more
// or to another one, and to say why if that fails.
func (p *passage) tryOthers() {
	f, v, first := p.flow, p.verdict, p.first
	p.close(&p.server)
	p.leave(func() { f.forward(v, first, audit.TLS) })
}

// copyUp and copyDown copy in one direction what there is. They report whether
// the passage goes on.
func (p *passage) copyUp(ending bool) bool { return p.copy(p.server, p.client, &p.up, ending) }

func (p *passage) copyDown(ending bool) bool { return p.copy(p.client, p.server, &p.down, ending) }

// copy does it until nothing more is there. What is not taken at once is moved
// on with, to be waited for elsewhere.
func (p *passage) copy(to, from int, h *half, ending bool) (goesOn bool) {
	for !h.ended {
		page := p.lane.page[:]
		n, err := socket.Read(from, page)
		switch {
		case err == unix.EAGAIN:
			return true
		case err != nil:
			p.breakOff()
			return false
		case n == 0:
			h.ended = true
			return p.passEnd(to)
		}
		sent, err := socket.Write(to, page[:n])
		if err != nil && err != unix.EAGAIN {
			p.breakOff()
			return false
		}
		h.copied += int64(sent)
		if sent < n || p.up.copied+p.down.copied > moveBytes {
			h.rest = slices.Clone(page[sent:n])
			p.move()
			return false
		}
		if n < len(page) && !ending {
			return true // what comes later is another event
		}
	}
	return true
}

// passEnd tells one side that the other has ended. It reports whether the
// passage goes on.
func (p *passage) passEnd(to int) bool {
	switch {
	case p.up.ended && p.down.ended:
		p.finish()
		return false
	case socket.End(to) != nil:
		p.breakOff()
		return false
	}
	return true
}

// breakOff resets both sides.
func (p *passage) breakOff() {
	p.abort()
	p.finish()
}

// abort resets what is open.
func (p *passage) abort() {
	for _, fd := range []int{p.client, p.server} {
		if fd >= 0 {
			socket.Abort(fd)
		}
	}
}

// finish ends the flow.
func (p *passage) finish() {
	f, v := p.flow, p.verdict
	p.close(&p.client)
	p.close(&p.server)
	v.overrule(f.finish(v.visit))
	f.record(v, audit.Record{
		Protocol: audit.TLS, Dst: p.remote, BytesUp: uint64(p.up.copied), BytesDown: uint64(p.down.copied),
	})
	f.leaveBox()
}

// lose ends a flow that the node has no means for.
func (p *passage) lose(err error) {
	p.flow.proxy.log.Warn("a connection cannot be carried", "sandbox", p.flow.box.sandbox, "err", err)
	p.flow.stop("the node cannot carry it")
	p.finish()
}

// close closes one of the descriptors, if it is open.
func (p *passage) close(fd *int) {
	p.flow.box.mu.Lock()
	defer p.flow.box.mu.Unlock()
	if *fd >= 0 {
		delete(p.lane.passages, *fd)
		socket.Close(*fd)
		*fd = -1
	}
}

// leave has the flow go on in a goroutine, with the client's connection alone.
func (p *passage) leave(serve func()) {
	client, err := p.take(&p.client)
	if err != nil {
		p.lose(err)
		return
	}
	f := p.flow
	f.depart(p.lane.ctx, client)
	f.proxy.flows.Go(func() {
		defer f.leave()
		serve()
	})
}

// move has the flow go on in a goroutine with both connections.
func (p *passage) move() {
	server, err := p.take(&p.server)
	if err != nil {
		p.lose(err)
		return
	}
	f, v, to := p.flow, p.verdict, &upstream{TCPConn: server, flow: p.flow, to: p.verdict.to, policy: p.verdict.visit.policy, remote: p.remote}
	p.leave(func() {
		if _, err := f.attach(to); err != nil { // it was cut meanwhile
			f.giveUp(v, err, audit.TLS)
			return
		}
		f.carry(v, to, p.up, p.down, audit.TLS)
	})
}

// take makes a connection of the net package of one of the descriptors.
func (p *passage) take(fd *int) (*net.TCPConn, error) {
	f, taken := p.flow, *fd
	p.lane.unwatch(taken)
	delete(p.lane.passages, taken)
	f.box.mu.Lock()
	*fd = -1
	f.box.mu.Unlock()
	return socket.Conn(taken)
}
