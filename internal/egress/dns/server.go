package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
)

const (
	// idleTimeout bounds the wait for the next query on a TCP connection and
	// the time it takes to arrive.
	idleTimeout = 10 * time.Second
	// writeTimeout bounds the delivery of a reply to a sandbox that reads slowly.
	writeTimeout = 5 * time.Second
	// acceptPause is how long nothing is accepted after that has failed: the
	// process is out of file descriptors.
	acceptPause = 50 * time.Millisecond
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Listen are the addresses to serve, each over UDP and TCP: at least one,
	// and none that stands for all. Port 0 means a free one.
	Listen []netip.AddrPort
	// Tenants says who asks. Required.
	Tenants egress.Tenants
	// Resolver answers for the names that policies allow. Required. It is not
	// closed by the server.
	Resolver *Resolver
	// Observer is told of every query; it may be nil.
	Observer Observer
	Limits   Limits
	// Log receives trouble with sockets; nil discards it.
	Log *slog.Logger
}

// Server answers the DNS queries of sandboxes, each by the policy of the
// sandbox that has the source address. Queries from other addresses are
// dropped.
type Server struct {
	tenants  egress.Tenants
	resolver *Resolver
	observer Observer
	log      *slog.Logger
	clients  clients

	packets []*packets
	streams []*net.TCPListener
	working sync.WaitGroup // queries and connections that are being served
}

// NewServer listens. The server must be run or closed.
func NewServer(cfg ServerConfig) (*Server, error) {
	switch {
	case len(cfg.Listen) == 0:
		return nil, errors.New("dns server: listen: no address")
	case cfg.Tenants == nil:
		return nil, errors.New("dns server: tenants: missing")
	case cfg.Resolver == nil:
		return nil, errors.New("dns server: resolver: missing")
	case min(cfg.Limits.PerSecond, cfg.Limits.Burst, cfg.Limits.Concurrent, cfg.Limits.Connections) < 0:
		return nil, fmt.Errorf("dns server: limits: negative in %+v", cfg.Limits)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		tenants:  cfg.Tenants,
		resolver: cfg.Resolver,
		observer: cfg.Observer,
		log:      cfg.Log,
		clients:  clients{limits: cfg.Limits.withDefaults(), byID: make(map[string]*client)},
	}
	for _, addr := range cfg.Listen {
		if err := s.listen(addr); err != nil {
			return nil, errors.Join(fmt.Errorf("dns server: %w", err), s.Close())
		}
	}
	return s, nil
}

// listen opens one address. If the port is 0, UDP gets the one that TCP got.
func (s *Server) listen(addr netip.AddrPort) error {
	if !addr.IsValid() || addr.Addr().IsUnspecified() {
		// On all addresses, replies over UDP would come from any of them.
		return fmt.Errorf("listen on %v: not one address and a port", addr)
	}
	stream, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	s.streams = append(s.streams, stream)
	bound := netip.AddrPortFrom(addr.Addr(), stream.Addr().(*net.TCPAddr).AddrPort().Port())
	packet, err := openPackets(bound)
	if err != nil {
		return err
	}
	s.packets = append(s.packets, packet)
	return nil
}

// Addrs returns where the server listens, in the order of the configuration.
func (s *Server) Addrs() (addrs []netip.AddrPort) {
	for _, packet := range s.packets {
		addrs = append(addrs, packet.bound)
	}
	return addrs
}

// Close stops listening. A server that runs ends.
func (s *Server) Close() error {
	var err error
	for _, packet := range s.packets {
		err = errors.Join(err, packet.close())
	}
	for _, stream := range s.streams {
		err = errors.Join(err, ignoreClosed(stream.Close()))
	}
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Run serves until ctx ends or a socket fails, and returns when nothing is
// being served any more. What waits for an answer then gets none.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, packet := range s.packets {
		g.Go(func() error { return s.servePackets(ctx, packet) })
	}
	for _, stream := range s.streams {
		g.Go(func() error { return s.serveStreams(ctx, stream) })
	}
	g.Go(func() error {
		<-ctx.Done()
		return s.Close()
	})
	err := g.Wait()
	s.working.Wait()
	return err
}

// Name returns the name for which a sandbox was given an address of Synthetic.
func (s *Server) Name(sandbox string, addr netip.Addr) (string, bool) {
	c := s.clients.find(sandbox, time.Now())
	if c == nil {
		return "", false
	}
	return c.pretended(addr)
}

// servePackets answers datagrams. Nothing in the loop waits: one sandbox cannot
// hold up the others.
func (s *Server) servePackets(ctx context.Context, p *packets) error {
	for {
		n, err := p.receive()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("dns server: read datagrams: %w", err)
		}
		for i := range n {
			from, packet := p.datagram(i)
			if t, ok := s.tenants.Tenant(from.Addr()); ok {
				p.answer(i, packet, s.servePacket(ctx, p, from, t, packet))
			}
		}
		if err := p.flush(); err != nil {
			s.log.Debug("send DNS replies", "error", err) // the sandboxes will ask again
		}
	}
}

// servePacket returns the reply, or if name servers have to be asked or there is
// none, nil: then it comes later, or never.
func (s *Server) servePacket(ctx context.Context, p *packets, from netip.AddrPort, t egress.Tenant, packet []byte) []byte {
	now := time.Now()
	c := s.clients.of(t.Sandbox, now)
	if m, ok := c.recall(t, packet, now); ok {
		s.observe(m.seen, now)
		return m.reply
	}
	e := s.admit(t, c, packet)
	if e == nil {
		return nil
	}
	reply, flight := e.begin()
	switch {
	case flight == nil:
	case flight.landed():
		reply = e.complete(ctx, flight)
	default:
		s.working.Go(func() { s.send(p, from, e.finish(e.complete(ctx, flight), 0)) })
		return nil
	}
	packed := e.finish(reply, 0)
	if !e.holds.IsZero() {
		c.remember(packet, memo{tenant: t, until: e.holds, reply: packed, seen: e.seen})
	}
	return packed
}

// observe tells the observer of a query.
func (s *Server) observe(q Query, began time.Time) {
	if s.observer != nil {
		q.Began, q.Duration = began, time.Since(began)
		s.observer.ObserveQuery(q)
	}
}

func (s *Server) send(p *packets, to netip.AddrPort, reply []byte) {
	if reply == nil {
		return
	}
	if err := p.send(reply, to); err != nil {
		s.log.Debug("send a DNS reply", "to", to, "error", err) // the sandbox will ask again
	}
}

func (s *Server) serveStreams(ctx context.Context, ln *net.TCPListener) error {
	for {
		conn, err := ln.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			s.log.Warn("accept a DNS connection", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		t, ok := s.tenants.Tenant(from)
		if !ok {
			conn.Close()
			continue
		}
		c := s.clients.of(t.Sandbox, time.Now())
		if !c.connect() {
			conn.Close()
			continue
		}
		s.working.Go(func() {
			defer c.disconnect()
			s.serveStream(ctx, conn, from, t.Sandbox, c)
		})
	}
}

// serveStream answers the queries of one connection in their order, each by
// the policy that is in force when it comes.
func (s *Server) serveStream(ctx context.Context, conn net.Conn, from netip.Addr, sandbox string, c *client) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		_ = conn.SetDeadline(time.Now().Add(idleTimeout)) // fails when closed, and then so does reading
		packet, err := readMessage(conn, maxQuery)
		if err != nil {
			return
		}
		t, ok := s.tenants.Tenant(from)
		if !ok || t.Sandbox != sandbox {
			return // the address has another tenant now
		}
		reply := s.replyTo(ctx, t, c, packet)
		if reply == nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(writeTimeout))
		if err := writeMessage(conn, reply); err != nil {
			return
		}
	}
}

// replyTo returns the packed reply to a message, nil if there is none.
func (s *Server) replyTo(ctx context.Context, t egress.Tenant, c *client, packet []byte) []byte {
	e := s.admit(t, c, packet)
	if e == nil {
		return nil
	}
	reply, flight := e.begin()
	if flight != nil {
		reply = e.complete(ctx, flight)
	}
	return e.finish(reply, wire.MaxMsgSize)
}
