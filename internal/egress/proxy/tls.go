package proxy

import (
	"errors"
	"fmt"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress/proxy/hello"
	"github.com/moat-sandbox/moat/internal/policy"
)

// peekSize is what the first bytes of most connections fit into.
const peekSize = 2 << 10

// opening is what a client has sent before its flow was judged.
type opening struct {
	bytes []byte
	name  policy.Name // not set if there is no usable one
	why   string      // what is wrong with it then
	tls   bool        // it begins as TLS does
}

// serveTLS judges a connection by the name in its ClientHello. What comes
// after that is encrypted and passes unseen, unless rules decide about what is
// in it.
func (f *flow) serveTLS() {
	o := f.peekHello()
	v := f.judge(question{name: o.name, why: o.why, hello: true})
	switch {
	case v.seen:
		f.intercept(v, o)
	case !v.allow:
		f.refuseTLS(v, o.tls)
	default:
		f.forward(v, o.bytes, audit.TLS)
	}
}

// peekHello reads until the name is known, or cannot become so.
func (f *flow) peekHello() opening {
	buf := make([]byte, 0, peekSize)
	var r hello.Reader
	var failed error
	for done := false; !done && failed == nil; {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		var n int
		n, failed = f.client.Read(buf[len(buf):cap(buf)])
		done = r.Write(buf[len(buf) : len(buf)+n])
		buf = buf[:len(buf)+n]
	}
	o := opening{bytes: buf, tls: r.IsTLS()}
	name, err := r.Name()
	if err == nil {
		if o.name, err = policy.ParseName(name); err != nil {
			err = fmt.Errorf("the TLS server name is not usable: %w", err)
		}
	}
	switch {
	case err == nil:
	case failed != nil && isTimeout(failed):
		o.why = fmt.Sprintf("no complete TLS ClientHello came within %v", f.proxy.limits.Peek)
	case failed != nil && len(buf) == 0:
		o.why = "the connection ended before anything was sent"
	default:
		o.why = err.Error()
	}
	return o
}

// isTimeout reports whether a deadline has passed.
func isTimeout(err error) bool {
	var slow interface{ Timeout() bool }
	return errors.As(err, &slow) && slow.Timeout()
}

// accessDenied is a fatal alert (RFC 8446, section 6.2) in a record of its own.
var accessDenied = []byte{21, 3, 3, 0, 2, 2, 49}

// refuseTLS tells a client that it is not let through.
func (f *flow) refuseTLS(v verdict, isTLS bool) {
	if !isTLS {
		f.refuseRaw(v)
		return
	}
	f.record(v, audit.Record{Protocol: audit.TLS})
	_, _ = f.client.Write(accessDenied) // who does not read it learns by the end
	linger(f.client)
}

// refuseRaw resets a connection of no known protocol.
func (f *flow) refuseRaw(v verdict) {
	f.record(v, audit.Record{Protocol: audit.TCP})
	reset(f.client)
}

// forward connects to where a flow may go and copies until it ends.
func (f *flow) forward(v verdict, peeked []byte, protocol audit.Protocol) {
	_ = f.client.SetReadDeadline(time.Time{})
	up, err := f.dial(v.to)
	if err != nil {
		f.giveUp(v, err, protocol)
		return
	}
	defer up.Close()
	var t traffic
	if f.connected(v.visit, up) {
		t = relay(f.client, up.TCPConn, peeked)
	} else {
		reset(f.client)
	}
	v.overrule(f.finish(v.visit))
	f.record(v, audit.Record{Protocol: protocol, Dst: up.remote, BytesUp: uint64(t.up), BytesDown: uint64(t.down)})
}

// giveUp ends a flow that is allowed and comes to nothing.
func (f *flow) giveUp(v verdict, err error, protocol audit.Protocol) {
	v.fail(err)
	end := f.finish(v.visit)
	v.overrule(end)
	switch {
	case !v.allow && end == nil && protocol == audit.TLS:
		f.refuseTLS(v, true)
	default:
		f.record(v, audit.Record{Protocol: protocol})
		reset(f.client)
	}
}
