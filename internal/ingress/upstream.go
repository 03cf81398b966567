package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

var (
	errEnded    = errors.New("the sandbox has ended")
	errBusy     = errors.New("too many requests in flight")
	errStopping = errors.New("the ingress is closed")
)

// upstream is the way into one life of one sandbox. It owns every connection
// to the sandbox and knows every answer that is under way; end cuts them all.
type upstream struct {
	id     string
	addr   netip.Addr
	done   <-chan struct{} // of the target
	tally  tally
	dialer net.Dialer
	http1  *http.Transport
	http2  *http.Transport
	// life ends with the upstream; dials under way stop with it.
	life   context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	ended   bool                       // guarded by mu, as are the two below
	conns   map[*upstreamConn]struct{} // into the sandbox, idle ones too
	parties map[party]struct{}
	idle    lines
}

// party is a client's side of an exchange. Its methods are called with up.mu
// held, and not after it has left.
type party interface {
	// cut breaks an answer off that has begun, whatever it is waiting for. One
	// that has not is left alone: the client can still be told what happened.
	cut()
	// withdraw ends the exchange for a reason that the client is told, if that
	// is still possible.
	withdraw(why *failure)
	// subject is what was asked for.
	subject() (route, *http.Request)
}

const (
	// idleTimeout is shorter than what servers grant (gunicorn 2 s, Node and
	// uvicorn 5 s), so that a request rarely meets a connection that the other
	// side is just closing.
	idleTimeout     = time.Second
	idlePerPort     = 128
	continueTimeout = time.Second // for servers that do not know Expect
	maxAnswerHeader = 256 << 10   // bytes
)

func newUpstream(t Target) *upstream {
	life, cancel := context.WithCancel(context.Background())
	up := &upstream{
		id:      t.ID,
		addr:    t.Addr,
		done:    t.Done,
		life:    life,
		cancel:  cancel,
		conns:   make(map[*upstreamConn]struct{}),
		parties: make(map[party]struct{}),
	}
	up.http1, up.http2 = up.newTransport(), up.newTransport()
	up.http1.Protocols.SetHTTP1(true)
	up.http2.Protocols.SetHTTP2(true)
	up.http2.Protocols.SetUnencryptedHTTP2(true)
	return up
}

func (up *upstream) newTransport() *http.Transport {
	return &http.Transport{
		DialContext: up.dial,
		Protocols:   new(http.Protocols),
		// The connection ends in the sandbox, whatever its certificate says.
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
		TLSHandshakeTimeout:    dialTimeout,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    idlePerPort,
		IdleConnTimeout:        idleTimeout,
		ExpectContinueTimeout:  continueTimeout,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

// RoundTrip implements http.RoundTripper. Apps are spoken to in HTTP/1.1, which
// all understand; only gRPC cannot do without HTTP/2.
func (up *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	if isGRPC(r) {
		return up.http2.RoundTrip(r)
	}
	return up.http1.RoundTrip(r)
}

// isNotTLS reports that a port answered a TLS greeting with something else.
func isNotTLS(err error) bool {
	var other tls.RecordHeaderError
	return errors.As(err, &other)
}

func isGRPC(r *http.Request) bool {
	kind, ok := strings.CutPrefix(r.Header.Get("Content-Type"), "application/grpc")
	return r.ProtoMajor == 2 && ok && (kind == "" || kind[0] == '+' || kind[0] == ';')
}

// serves reports whether this is the way into a target that has not ended.
func (up *upstream) serves(t Target) bool {
	select {
	case <-t.Done:
		return false
	default:
		return up.done == t.Done
	}
}

// upstream returns the way into a target, making it on first use.
func (in *Ingress) upstream(t Target) (*upstream, error) {
	select {
	case <-t.Done:
		return nil, errEnded
	default:
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil, errStopping
	}
	up, ok := in.upstreams[t.Done]
	if !ok {
		up = newUpstream(t)
		in.upstreams[t.Done] = up
		in.watchers.Go(func() { in.watch(t.Done, up) })
	}
	return up, nil
}

// watch ends an upstream when its sandbox or the ingress does.
func (in *Ingress) watch(done <-chan struct{}, up *upstream) {
	select {
	case <-done:
	case <-in.closing:
	}
	up.end()
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.upstreams, done)
}

// end cuts everything: answers that have begun are broken off, upgraded
// connections and those into the sandbox are reset, and no new ones come.
func (up *upstream) end() {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.ended = true
	up.cancel()
	// Clients first: once a connection into the sandbox breaks, its handler
	// would close the client's end in good order.
	for p := range up.parties {
		p.cut()
	}
	for c := range up.conns {
		reset(c.TCPConn)
	}
	up.idle.stop()
}

// enter counts a party in, and leave out again.
func (up *upstream) enter(p party, limit int) error {
	up.mu.Lock()
	defer up.mu.Unlock()
	return up.admit(p, limit)
}

// admit is enter for who holds up.mu.
func (up *upstream) admit(p party, limit int) error {
	switch {
	case up.ended:
		return errEnded
	case len(up.parties) >= limit:
		return errBusy
	}
	up.parties[p] = struct{}{}
	return nil
}

// leave returns once nobody touches the party any more.
func (up *upstream) leave(p party) {
	up.mu.Lock()
	defer up.mu.Unlock()
	delete(up.parties, p)
}

// withdraw ends one exchange, unless it is over already.
func (up *upstream) withdraw(p party, why *failure) {
	up.mu.Lock()
	defer up.mu.Unlock()
	if _, open := up.parties[p]; open {
		p.withdraw(why)
	}
}

// recheck ends every exchange that the target, which has changed, would not let
// in now.
func (up *upstream) recheck(t Target, now time.Time) {
	up.mu.Lock()
	defer up.mu.Unlock()
	for p := range up.parties {
		rt, r := p.subject()
		if _, why := t.admit(rt, r, now); why != nil {
			p.withdraw(why)
		}
	}
}

// dial connects to a port of the sandbox; of address only the port counts.
func (up *upstream) dial(ctx context.Context, _, address string) (net.Conn, error) {
	want, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(up.addr, want.Port()).String()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(up.life, func() { cancel(errEnded) })
	defer stop()
	raw, err := dialPatiently(ctx, func(ctx context.Context) (net.Conn, error) {
		return up.dialer.DialContext(ctx, "tcp", to)
	})
	if err != nil {
		return nil, err
	}
	return up.adopt(raw.(*net.TCPConn), want.Port()) // what dialling "tcp" gives
}

// adopt makes a fresh connection known, so that end finds it.
func (up *upstream) adopt(tcp *net.TCPConn, port uint16) (*upstreamConn, error) {
	conn := &upstreamConn{TCPConn: tcp, up: up, port: port}
	up.mu.Lock()
	defer up.mu.Unlock()
	if up.ended {
		reset(tcp)
		return nil, errEnded
	}
	up.conns[conn] = struct{}{}
	return conn, nil
}

// upstreamConn is a connection that its upstream knows of until it is closed.
type upstreamConn struct {
	*net.TCPConn
	up   *upstream
	port uint16
	// The rest is for those that callers use.
	socket   *socket
	used     bool
	deadline time.Time // for reading, as last set; zero when there is none
	since    time.Time // idle; guarded by up.mu
}

// bound sets a deadline for reading.
func (c *upstreamConn) bound(t time.Time) {
	c.deadline = t
	_ = c.SetReadDeadline(t) // if it is closed, reading fails too
}

// send writes a request. quiet is false, and nothing was written, when the app
// closed the connection or said something unasked while nobody used it: that
// would be taken for the answer.
func (c *upstreamConn) send(request []byte) (n int, quiet bool, err error) {
	if c.used {
		return c.socket.WriteIfQuiet(request)
	}
	c.used = true
	n, err = c.socket.Write(request)
	return n, true, err
}

func (c *upstreamConn) Close() error {
	c.up.mu.Lock()
	delete(c.up.conns, c)
	c.up.mu.Unlock()
	return c.TCPConn.Close()
}

// reset closes a connection so that the other side cannot take it for a
// regular end: with a TCP reset, and without TLS's farewell.
func reset(conn net.Conn) {
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	if tcp, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0) // fails only on a connection already closed
	}
	_ = conn.Close() // likewise
}
