package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// The protocols of TLS connections that are looked into.
const (
	http1 = "http/1.1"
	http2 = "h2"
)

const (
	// maxSpare is how many connections of HTTP/1 a site keeps for later.
	maxSpare = 64
	// freshTime is how long the connection that was made to find out a server's
	// protocol may wait for a request.
	freshTime = 5 * time.Second
	// receiveBuffer is how much of an answer over HTTP/2 may wait for a client
	// that is slow, in bytes.
	receiveBuffer = 1 << 20
)

// site is a server as one sandbox reaches it over TLS, where that is looked
// into. The connections to it are shared by the flows of that sandbox, and by
// nobody else's. Which address is connected to is found by name, and nothing is
// sent before the server has proven that the name is its own.
type site struct {
	proxy  *Proxy
	box    *box // which it keeps while it is in its sites
	src    netip.Addr
	name   policy.Name
	port   uint16
	policy *policy.Policy // by which it was made

	tls    *tls.Config
	h1, h2 *http.Transport
	ctx    context.Context // ends with the sandbox or the proxy
	cancel context.CancelFunc

	users int         // guarded by box.mu
	idle  *time.Timer // ends it when it has no users; guarded by box.mu

	mu     sync.Mutex
	speaks string    // what the server chose when it could; guarded by mu
	fresh  *tls.Conn // not used yet; guarded by mu
	made   time.Time // fresh was; guarded by mu
}

// line is the connection below that of TLS.
type line struct {
	*net.TCPConn
	remote netip.AddrPort // not valid if it is not known
}

// openSite returns the site for a name under the policy that is in force now.
// The caller leaves it.
func (f *flow) openSite(name policy.Name) (*site, error) {
	b := f.box
	b.mu.Lock()
	defer b.mu.Unlock()
	t, err := f.tenant()
	if err != nil || b.closed {
		return nil, errEnded
	}
	s := b.sites[name]
	if s != nil && !s.stays(t.Policy) { // an update is about to find it
		b.drop(s)
		s = nil
	}
	if s == nil && !b.roomForSite() {
		return nil, errSites
	}
	if s == nil {
		s = f.proxy.newSite(b, f, name, t.Policy)
		b.sites[name] = s
		f.proxy.boxes.retain(b)
	}
	s.users++
	return s, nil
}

// maxSites is how many servers a sandbox may be connected to over TLS that is
// looked into.
const maxSites = 512

// roomForSite drops sites that nobody uses where there are too many. The caller
// holds mu.
func (b *box) roomForSite() bool {
	for _, s := range b.sites {
		if len(b.sites) < maxSites {
			break
		}
		if s.users == 0 {
			b.drop(s)
		}
	}
	return len(b.sites) < maxSites
}

func (p *Proxy) newSite(b *box, f *flow, name policy.Name, by *policy.Policy) *site {
	s := &site{proxy: p, box: b, src: f.src, name: name, port: f.original.Port(), policy: by}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.tls = &tls.Config{
		ServerName: name.String(), RootCAs: p.roots, MinVersion: tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(2),
	}
	s.h1, s.h2 = newTransport(), newTransport()
	s.h1.Protocols.SetHTTP1(true)
	s.h1.MaxIdleConnsPerHost, s.h1.MaxIdleConns = maxSpare, maxSpare
	s.h1.DialTLSContext = func(context.Context, string, string) (net.Conn, error) { return s.take(http1) }
	s.h2.Protocols.SetHTTP2(true)
	s.h2.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: receiveBuffer}
	s.h2.DialTLSContext = func(context.Context, string, string) (net.Conn, error) { return s.take(http2) }
	s.idle = time.AfterFunc(serverIdleTime, s.expire)
	return s
}

// leave says that a flow does not use the site any more.
func (s *site) leave() {
	s.box.mu.Lock()
	defer s.box.mu.Unlock()
	s.users--
	if s.users == 0 {
		s.idle.Reset(serverIdleTime)
	}
}

// expire closes a site that nobody has used for a while.
func (s *site) expire() {
	s.box.mu.Lock()
	defer s.box.mu.Unlock()
	if s.users == 0 {
		s.box.drop(s)
	}
}

// close lets go of the connections: those in use end with what uses them. It
// is called by box.drop alone.
func (s *site) close() {
	s.idle.Stop()
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discard()
	s.h1.CloseIdleConnections()
	s.h2.CloseIdleConnections()
	s.proxy.boxes.release(s.box)
}

// discard closes the fresh connection. The caller holds mu.
func (s *site) discard() {
	if s.fresh != nil {
		_ = s.fresh.Close() // nothing was said on it
		s.fresh = nil
	}
}

// stays reports whether the connections to a site are what a policy wants that
// is in force now. One that was allowed by its addresses is opened anew under
// another policy, as these may be denied by it.
func (s *site) stays(next *policy.Policy) bool {
	if next == s.policy {
		return true
	}
	to := byName(next, s.name, s.port)
	return to.sameWay(s.policy, next) && !to.found
}

// protocol returns which of the two the server wants to speak if it has the
// choice.
func (s *site) protocol() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.speaks != "" {
		return s.speaks, nil
	}
	conn, err := s.dial(http2, http1)
	if err != nil {
		return "", err
	}
	s.speaks = http1
	if conn.ConnectionState().NegotiatedProtocol == http2 {
		s.speaks = http2
	}
	s.discard()
	s.fresh, s.made = conn, time.Now()
	return s.speaks, nil
}

// take returns a connection for a protocol: the fresh one, or one that is made
// now.
func (s *site) take(protocol string) (net.Conn, error) {
	s.mu.Lock()
	conn := s.fresh
	usable := conn != nil && s.speaks == protocol && time.Since(s.made) < freshTime
	if usable {
		s.fresh = nil
	}
	s.mu.Unlock()
	if usable {
		return conn, nil
	}
	conn, err := s.dial(protocol)
	if err != nil {
		return nil, dialError{err}
	}
	return conn, nil
}

var errOtherProtocol = errors.New("the server does not speak HTTP/2")

// dial connects, by the policy that is in force now, and has the server prove
// its name.
func (s *site) dial(protocols ...string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	defer cancel()
	t, ok := s.proxy.tenants.Tenant(s.src)
	if !ok || t.Sandbox != s.box.sandbox {
		return nil, errEnded
	}
	to := byName(t.Policy, s.name, s.port)
	if to.judge(t.Policy).Verdict != policy.Allow {
		return nil, errNotAllowed
	}
	tcp, remote, err := s.proxy.dial(ctx, to.target(t.Policy, s.src))
	if err != nil {
		return nil, err
	}
	cfg := s.tls.Clone()
	cfg.NextProtos = protocols
	conn := tls.Client(&line{TCPConn: tcp, remote: remote}, cfg)
	err = conn.HandshakeContext(ctx)
	if err == nil && slices.Equal(protocols, []string{http2}) && conn.ConnectionState().NegotiatedProtocol != http2 {
		s.forget()
		err = errOtherProtocol
	}
	if err != nil {
		reset(tcp)
		return nil, &certificateError{name: s.name, err: err}
	}
	return conn, nil
}

// forget has the next flow ask the server for its protocol again.
func (s *site) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.speaks = ""
}

// below returns the connection below that of a request, and the address that it
// goes to, which is not valid if that is not known.
func below(conn net.Conn) (tcp *net.TCPConn, remote netip.AddrPort) {
	switch conn := conn.(type) {
	case *upstream:
		return conn.TCPConn, conn.remote
	case *tls.Conn:
		if under, ok := conn.NetConn().(*line); ok {
			return under.TCPConn, under.remote
		}
	}
	return nil, remote
}
