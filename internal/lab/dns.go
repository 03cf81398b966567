package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Query is one DNS question that reached the internet.
type Query struct {
	At time.Time
	// Net is "udp" or "tcp".
	Net  string
	From netip.AddrPort
	// To is the resolver that was asked.
	To   netip.AddrPort
	Name string // lower case, with its final dot
	Type string // "A", "TXT", …
}

// nameserver answers for the lab's zone on every public resolver's address.
type nameserver struct {
	seen    seen[Query]
	zone    atomic.Pointer[zone]
	servers []*dns.Server
	running sync.WaitGroup
}

func startNameserver(internet *Space, zone *zone, log *slog.Logger) (*nameserver, error) {
	n := &nameserver{}
	n.setZone(zone)
	for _, addr := range resolverAddrs() {
		at := netip.AddrPortFrom(addr, 53).String()
		conn, err := internet.ListenPacket("udp", at)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve DNS: %w", err), n.Close())
		}
		n.start(&dns.Server{PacketConn: conn, Handler: n}, log)
		ln, err := internet.Listen("tcp", at)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve DNS: %w", err), n.Close())
		}
		n.start(&dns.Server{Listener: ln, Handler: n}, log)
	}
	return n, nil
}

// start runs one server and returns when it serves.
func (n *nameserver) start(s *dns.Server, log *slog.Logger) {
	ready := make(chan struct{})
	s.NotifyStartedFunc = func() { close(ready) }
	n.servers = append(n.servers, s)
	n.running.Go(func() {
		if err := s.ActivateAndServe(); err != nil {
			log.Error("lab DNS server ended", "error", err)
		}
	})
	<-ready
}

func (n *nameserver) setZone(z *zone) { n.zone.Store(z) }

// knows reports whether the zone has a name, given without its final dot.
func (n *nameserver) knows(name string) bool {
	_, ok := n.zone.Load().find(dns.Fqdn(name))
	return ok
}

// ServeDNS answers one query and records it.
func (n *nameserver) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	reply := new(dns.Msg).SetReply(r)
	reply.RecursionAvailable = true
	for _, q := range r.Question {
		n.seen.add(Query{
			At:   time.Now(),
			Net:  w.LocalAddr().Network(),
			From: addrPort(w.RemoteAddr()),
			To:   addrPort(w.LocalAddr()),
			Name: strings.ToLower(q.Name),
			Type: dns.Type(q.Qtype).String(),
		})
		answers, exists := n.zone.Load().answer(q)
		reply.Answer = append(reply.Answer, answers...)
		if !exists {
			reply.Rcode = dns.RcodeNameError
		}
	}
	if w.LocalAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := r.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		reply.Truncate(size)
	}
	_ = w.WriteMsg(reply) // the client may be gone; it will ask again
}

// Close stops all servers and waits for them.
func (n *nameserver) Close() error {
	var err error
	for _, s := range n.servers {
		err = errors.Join(err, s.Shutdown())
	}
	n.running.Wait()
	return err
}

// addrPort converts a socket's address; the zero value stands for one that is
// not of IP.
func addrPort(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
