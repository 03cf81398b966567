package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
)

// opened is a client's connection whose first bytes were read already. TLS is
// spoken over it.
type opened struct {
	*net.TCPConn
	flow  *flow
	early []byte

	once   sync.Once
	closed chan struct{} // by whoever speaks on it
}

func (c *opened) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	c.early = nil
	return c.TCPConn.Read(p)
}

// Close implements net.Conn.
func (c *opened) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.TCPConn.Close()
}

// intercept answers in the place of a server, so that every request can be
// judged. The client sees a certificate of the installation's authority, and
// the server what any client would say to it.
func (f *flow) intercept(v verdict, o opening) {
	if f.proxy.authority == nil {
		v.deny(policy.RuleRequests.String(), "rules decide about each request to "+o.name.String()+", and this server has no certificate authority to look into TLS with")
		f.refuseTLS(v, true)
		return
	}
	conn := &opened{TCPConn: f.client, flow: f, early: o.bytes, closed: make(chan struct{})}
	client := tls.Server(conn, &tls.Config{GetConfigForClient: func(chi *tls.ClientHelloInfo) (*tls.Config, error) {
		return f.impersonate(v, o.name, chi)
	}})
	if err := client.HandshakeContext(f.ctx); err != nil {
		v.deny(ruleHandshake, handshakeReason(err))
		v.overrule(f.finish(nil))
		f.record(v, audit.Record{Protocol: audit.TLS, Intercepted: true})
		linger(f.client) // with the alert that says so on its way
		return
	}
	if client.ConnectionState().NegotiatedProtocol == http2 {
		_ = f.client.SetReadDeadline(time.Time{})
		if f.proxy.rest.Give(client) {
			<-conn.closed
		}
		return
	}
	s := newSession(f, client)
	s.sni = o.name
	s.serveNext()
}

// errNoProtocol is for clients that speak neither version of HTTP.
var errNoProtocol = errors.New("the client offers no protocol that can be looked into, only HTTP/1.1 and HTTP/2 can")

// impersonate chooses protocol and certificate. The protocol is the one that
// client and server would have chosen between them.
func (f *flow) impersonate(v verdict, name policy.Name, chi *tls.ClientHelloInfo) (*tls.Config, error) {
	if sni, err := policy.ParseName(chi.ServerName); err != nil || sni != name {
		return nil, fmt.Errorf("the server name is read as %q and as %v", chi.ServerName, name)
	}
	offered := chi.SupportedProtos
	one, two := len(offered) == 0 || slices.Contains(offered, http1), slices.Contains(offered, http2)
	protocol := http1
	switch {
	case !one && !two:
		return nil, errNoProtocol
	case two && !one:
		protocol = http2
	case two && v.allow:
		protocol = f.serversChoice(name)
	}
	_ = f.client.SetReadDeadline(time.Now().Add(f.proxy.limits.Peek)) // the client is not to blame for the server
	return f.proxy.authority.ServerConfig(f.box.sandbox, v.opens, name.String(), protocol)
}

// serversChoice returns the protocol that a server prefers. One that cannot be
// asked now is asked again for each request, and the client told what came of
// that.
func (f *flow) serversChoice(name policy.Name) string {
	s, err := f.openSite(name)
	if err != nil {
		return http1
	}
	defer s.leave()
	protocol, err := s.protocol()
	if err != nil {
		return http1
	}
	return protocol
}

// handshakeReason says why TLS with the sandbox came to nothing.
func handshakeReason(err error) string {
	var alert tls.AlertError
	var remote *net.OpError
	switch {
	case errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Sprintf("the client ends the TLS handshake (%v): it may not trust the sandbox's CA bundle, or only one certificate", remote.Err)
	case errors.As(err, &alert):
		return fmt.Sprintf("the TLS handshake with the client failed: %v", alert)
	case errors.Is(err, errNoProtocol):
		return errNoProtocol.Error()
	case isTimeout(err):
		return "the TLS handshake with the client did not come to its end in time"
	}
	return "the TLS handshake with the client failed"
}

// certificateError says that a server did not prove its name.
type certificateError struct {
	name policy.Name
	err  error
}

func (e *certificateError) Error() string {
	return fmt.Sprintf("TLS with %v: %v", e.name, e.err)
}

func (e *certificateError) Unwrap() error { return e.err }

// Reason says what happened in a sentence that sandboxes may read.
func (e *certificateError) Reason() string {
	var unknown x509.UnknownAuthorityError
	var other x509.HostnameError
	var invalid x509.CertificateInvalidError
	var remote *net.OpError
	switch {
	case errors.As(e.err, &unknown):
		return fmt.Sprintf("the certificate of %v is signed by nobody whom this server trusts", e.name)
	case errors.As(e.err, &other):
		return fmt.Sprintf("the server at %v has a certificate for other names only", e.name)
	case errors.As(e.err, &invalid):
		return fmt.Sprintf("the certificate of %v is not valid: %v", e.name, invalid)
	case isTimeout(e.err):
		return fmt.Sprintf("%v does not answer in TLS", e.name)
	case errors.Is(e.err, errOtherProtocol):
		return fmt.Sprintf("%v does not speak HTTP/2", e.name)
	case errors.As(e.err, &remote) && remote.Op == "remote error":
		return fmt.Sprintf("%v refuses the TLS handshake: %v", e.name, remote.Err)
	}
	return fmt.Sprintf("the TLS handshake with %v failed", e.name)
}

// serveNext serves requests as they come, from the first one on.
func (s *session) serveNext() {
	for s.next() && s.serveOne() {
	}
	s.end()
}

// closeWrite ends what is sent to the client.
func (s *session) closeWrite() error {
	secure, ok := s.conn.(*tls.Conn)
	if !ok {
		return s.flow.client.CloseWrite()
	}
	return errors.Join(secure.CloseWrite(), s.flow.client.CloseWrite())
}

func newSession(f *flow, conn net.Conn) *session {
	s := &session{flow: f, conn: conn, in: bufio.NewReader(conn), sent: counter{Conn: conn}}
	s.out = bufio.NewWriter(&s.sent)
	return s
}
