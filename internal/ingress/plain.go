package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/ingress/link"
	"github.com/moat-sandbox/moat/internal/ingress/wire"
)

// plainDialTimeout bounds the one attempt at a connection that a caller makes.
// The slower half tries longer and has a word for each way of failing.
const plainDialTimeout = 250 * time.Millisecond

// serveOne passes the request in buf on, if it is plain and let in, and its
// answer back. While the outcome can still be beyond, nothing has been sent to
// the sandbox, or only what may be sent twice.
func (c *caller) serveOne() outcome {
	if !c.readPlain() {
		return beyond
	}
	x := &c.exchange
	up := x.up // most likely the same again
	*x = exchange{in: c.in, route: c.route, changes: c.in.changes.Load()}
	target, ok := c.in.sandboxes.Sandbox(c.route.id)
	if !ok || !target.complete(c.route.address) || target.scheme(c.route.port) != "http" || !isPlainHost(target.MaskHost) {
		return beyond
	}
	x.target = target
	grant, fail := target.admit(c.route, c.credentials(), time.Time{})
	if fail != nil {
		return beyond
	}
	if x.up = up; up == nil || !up.serves(target) {
		var err error
		if x.up, err = c.in.upstream(target); err != nil {
			return beyond
		}
	}
	x.meter.tallies = [...]*tally{&c.in.total, &x.up.tally}
	c.begun, c.refused = false, nil
	if err := x.up.enterCaller(c, c.in.maxInFlight, c.route.port, c.now); err != nil {
		return beyond
	}
	c.entered = true
	defer c.leave(false)
	if fail := c.recheckNow(); fail != nil {
		return beyond
	}
	return c.pass(grant)
}

// leave ends the exchange for everybody else, once. The connection into the
// sandbox may serve others then, if it can be used again.
func (c *caller) leave(again bool) {
	if c.entered {
		c.entered = false
		c.now = time.Now()
		c.exchange.up.leaveCaller(c, again, c.now)
	}
}

// readPlain reads the request in buf and where it goes; false when net/http
// must.
func (c *caller) readPlain() bool {
	head := c.buf[:wire.End(c.buf[:c.n])]
	// Links are for browsers, which mostly come by HTTP/2 anyway.
	if !c.request.Parse(head) || bytes.Contains(head, []byte(link.Parameter)) {
		return false
	}
	if c.request.Length > maxPlain {
		return false
	}
	c.size = len(head) + int(c.request.Length)
	if string(c.request.Host) != c.host && !c.findHost() {
		return false
	}
	if len(c.forwarded) == 0 {
		c.forward()
	}
	return c.awaitBody()
}

// isPlainHost reports whether a mask can be written into a head as it is.
func isPlainHost(mask string) bool {
	return !strings.ContainsFunc(mask, func(c rune) bool { return c <= ' ' || c >= 0x7f })
}

// findHost looks where the request's host leads.
func (c *caller) findHost() bool {
	host := string(c.request.Host)
	kind, addr, err := parseHost(host, c.in.domain)
	// The guest daemon has paths that need a closer look.
	if err != nil || kind != sandboxHost || addr.port == api.GuestPort {
		return false
	}
	if conn, secure := c.conn.(*tls.Conn); secure && c.in.api == nil && !isFor(host, conn.ConnectionState().ServerName) {
		return false
	}
	c.host, c.route = host, route{address: addr, by: byHost}
	c.forwarded = c.forwarded[:0]
	return true
}

// forward writes what programs are told of the client.
func (c *caller) forward() {
	scheme := "http"
	if _, secure := c.conn.(*tls.Conn); secure {
		scheme = "https"
	}
	out := c.forwarded
	if c.from.IsValid() {
		out = append(c.from.AppendTo(append(out, "X-Forwarded-For: "...)), "\r\n"...)
	}
	out = append(append(out, "X-Forwarded-Host: "...), c.host...)
	c.forwarded = append(append(append(out, "\r\nX-Forwarded-Proto: "...), scheme...), "\r\n"...)
}

// credentials is the request with the tokens in it, which is what admit looks
// at where there are no link cookies. Without them nobody is let in who needs
// them; so if admit ever looks at more, requests get slower, not freer.
func (c *caller) credentials() *http.Request {
	if c.tokens.Header == nil || !c.saysTheSame() {
		c.said = c.said[:0]
		c.tokens.Header = make(http.Header)
		for i := range c.request.Len() {
			if name := c.tokenName(i); name != "" {
				value := string(c.request.Value(i))
				c.said = append(c.said, said{name, []byte(value)})
				c.tokens.Header[name] = append(c.tokens.Header[name], value)
			}
		}
	}
	return &c.tokens
}

// saysTheSame reports whether the request has the tokens that the last one had,
// in constant time: that one may have been another client's, where somebody in
// between shares connections among them.
func (c *caller) saysTheSame() bool {
	n := 0
	for i := range c.request.Len() {
		name := c.tokenName(i)
		if name == "" {
			continue
		}
		if n == len(c.said) || c.said[n].name != name || subtle.ConstantTimeCompare(c.said[n].value, c.request.Value(i)) != 1 {
			return false
		}
		n++
	}
	return n == len(c.said)
}

// tokenName is the name of the i-th field if that holds a token; else "".
func (c *caller) tokenName(i int) string {
	if name := c.request.Name(i); mayBeOurs(name) {
		return spelled(name, tokenHeaders)
	}
	return ""
}

// recheckNow is like exchange's.
func (c *caller) recheckNow() *failure {
	if c.in.changes.Load() == c.exchange.changes {
		return nil
	}
	c.exchange.request = c.parsed()
	return c.exchange.recheckNow()
}

// pass exchanges request and answer on the connection into the sandbox that the
// caller got, or on a new one.
func (c *caller) pass(g grant) outcome {
	x := &c.exchange
	x.meter.inFlight(1)
	defer x.meter.inFlight(-1)
	if c.in.observer != nil {
		x.record = Record{
			Time: c.now, Client: c.from, Sandbox: c.route.id, Port: c.route.port,
			Method: string(c.request.Method), Path: string(c.request.Path()), Verdict: Allowed, Reason: g.reason,
		}
	}
	work := c.in.buffers.Get()
	defer c.in.buffers.Put(work)
	result, died := beyond, true
	if line := c.line; line != nil { // only this goroutine ever sets it
		result, died = c.try(line, work)
	}
	if died {
		line := c.dial()
		if line == nil {
			return beyond
		}
		if x.up.use(line, c) {
			result, _ = c.try(line, work)
		} else {
			_ = line.Close() // fails only when it is closed already
			result = c.fail(errRefused)
		}
	}
	c.in.total.requests.Add(1)
	x.up.tally.requests.Add(1)
	x.finish()
	return result
}

// try sends the request on a connection and passes the answer back. died says
// that this did not come about because the connection had ended while nobody
// used it, so that the request may be sent on another one.
func (c *caller) try(line *upstreamConn, work []byte) (result outcome, died bool) {
	x := &c.exchange
	if line.deadline.Sub(c.now) < slowAnswer {
		line.bound(c.now.Add(2 * slowAnswer)) // not for each request
	}
	old, n := line.used, 0
	sent, quiet, err := line.send(c.writeRequest(work[:0]))
	if !quiet {
		_ = line.Close()
		return beyond, true
	}
	if err == nil {
		n, err = c.receive(line, work)
	}
	if err == nil {
		x.meter.toApp(int(c.request.Length))
		return c.relay(line, work, n), false
	}
	_ = line.Close()
	if !c.unwatch() {
		return over, false // nobody is listening any more
	}
	if old && n == 0 && (sent == 0 || c.mayRepeat()) && x.up.goesOn(c) {
		return beyond, true
	}
	return c.fail(err), false
}

// mayRepeat reports whether the request may be sent again when it is not known
// whether it was received. The rule is net/http's.
func (c *caller) mayRepeat() bool {
	if c.request.Length > 0 {
		return false
	}
	if method := c.request.Method[0]; method == 'G' || method == 'H' { // GET, HEAD
		return true
	}
	r := c.parsed()
	return r.Header.Get("Idempotency-Key") != "" || r.Header.Get("X-Idempotency-Key") != ""
}

// dial makes one attempt.
func (c *caller) dial() *upstreamConn {
	up := c.exchange.up
	ctx, cancel := context.WithTimeout(up.life, plainDialTimeout)
	defer cancel()
	raw, err := up.dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(up.addr, c.route.port).String())
	if err != nil {
		return nil
	}
	tcp := raw.(*net.TCPConn) // what dialling "tcp" gives
	socket := newSocket()
	if err := socket.attach(tcp); err != nil {
		_ = tcp.Close()
		return nil
	}
	line, err := up.adopt(tcp, c.route.port)
	if err != nil {
		return nil
	}
	line.socket = socket
	return line
}

// writeRequest appends the request as the sandbox gets it.
func (c *caller) writeRequest(out []byte) []byte {
	r, x := &c.request, &c.exchange
	out = append(out, r.Method...)
	out = append(out, ' ')
	out = append(out, r.Target...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	if x.target.MaskHost != "" {
		out = append(out, strings.ReplaceAll(x.target.MaskHost, "${PORT}", strconv.Itoa(int(c.route.port)))...)
	} else {
		out = append(out, c.host...)
	}
	out = append(out, "\r\n"...)
	for i := range r.Len() {
		name := r.Name(i)
		if r.IsHost(i) || wire.IsHop(name) || x.isOursPlain(name, r.Value(i)) {
			continue
		}
		out = append(out, r.Line(i)...)
	}
	out = append(out, c.forwarded...)
	out = append(out, "\r\n"...)
	return append(out, c.buf[c.size-int(r.Length):c.size]...)
}

// parsed is the request as net/http reads it, with the body left out.
func (c *caller) parsed() *http.Request {
	head := c.buf[:c.size-int(c.request.Length)]
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil { // never: FuzzRequest of package wire holds both to the same
		r = &http.Request{Method: http.MethodGet, Header: make(http.Header)}
	}
	return r
}
