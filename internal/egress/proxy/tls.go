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

// proceed does what was decided about a TLS connection. What comes after its
// ClientHello is encrypted and passes unseen, unless rules decide about what is
// in it.
func (f *flow) proceed(v verdict, o opening) {
	_ = f.client.SetReadDeadline(f.began.Add(f.proxy.limits.Peek)) // fails only on a closed connection, as all of these
	switch {
	case v.seen:
		f.intercept(v, o)
	case !v.allow:
		f.refuseTLS(v, o.tls)
	default:
		f.forward(v, o.bytes, audit.TLS)
	}
}

// open says what a client's first bytes are, which r has read. Failed is why no
// more can be read, if so.
func (f *flow) open(r *hello.Reader, first []byte, failed error) opening {
	o := opening{bytes: first, tls: r.IsTLS()}
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
	case failed != nil && len(first) == 0:
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

// forward connects to where a flow may go and copies until it ends. Peeked is
// what the client has sent already.
func (f *flow) forward(v verdict, peeked []byte, protocol audit.Protocol) {
	_ = f.client.SetReadDeadline(time.Time{})
	up, err := f.dial(v.to)
	if err != nil {
		f.giveUp(v, err, protocol)
		return
	}
	var there, back half
	if f.connected(v.visit, up) {
		there.rest = peeked
	} else { // nothing is to be copied
		reset(f.client)
		there.ended, back.ended = true, true
	}
	f.carry(v, up, there, back, protocol)
}

// carry copies both ways between the client and a server until they end.
func (f *flow) carry(v verdict, to *upstream, up, down half, protocol audit.Protocol) {
	defer to.Close()
	relay(f.client, to.TCPConn, &up, &down)
	v.overrule(f.finish(v.visit))
	f.record(v, audit.Record{Protocol: protocol, Dst: to.remote, BytesUp: uint64(up.copied), BytesDown: uint64(down.copied)})
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
