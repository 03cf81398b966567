package lab

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"sync"
)

// Config says what differs from the ordinary lab. Its zero value is usable.
type Config struct {
	// Records adds to the internet's names, in the text form of RFC 1035
	// master files with absolute names. A name given here loses the records it
	// has by default. Records with a TTL of 0 are handed out one per query, in
	// turn: that is how a name rebinds.
	Records string
	// Addresses gives the internet further public addresses.
	Addresses []netip.Addr
	// Bare leaves out the web servers, so that ports 80 and 443 are free for
	// others, and what notes the packets on the wire: for measurements.
	Bare bool
	// Log receives the servers' complaints; nil discards them.
	Log *slog.Logger
}

// Lab is a running laboratory.
type Lab struct {
	// Node is the machine under test.
	Node *Node
	// Internet is everything else.
	Internet *Space

	ca      *authority
	names   *nameserver
	web     *web
	capture *Capture

	closers []io.Closer // closed in reverse order
	once    sync.Once
	closed  error
	unwatch func() bool
}

// New builds a laboratory and starts its servers. It is closed when ctx ends,
// or by Close. The caller must be root.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Lab{unwatch: func() bool { return false }}
	if err := l.build(cfg); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.unwatch = context.AfterFunc(ctx, func() { _ = l.Close() })
	return l, nil
}

func (l *Lab) build(cfg Config) (err error) {
	zone, err := parseZone(defaultRecords, cfg.Records)
	if err != nil {
		return err
	}
	if l.ca, err = newAuthority(); err != nil {
		return err
	}
	if l.Node, err = newNode(dnsAddr.String()); err != nil {
		return err
	}
	l.closers = append(l.closers, closerFunc(l.Node.close))
	if l.Internet, err = newSpace("internet"); err != nil {
		return err
	}
	l.closers = append(l.closers, closerFunc(l.Internet.close))
	l.Node.resolver, l.Internet.resolver = DNSServer, DNSServer

	public := append(publicAddrs(), cfg.Addresses...)
	if err := connect(l.Node.Space, l.Internet, public); err != nil {
		return err
	}
	if err := l.serve(zone, public, cfg.Log); err != nil || cfg.Bare {
		return err
	}
	return l.serveWeb(cfg.Log)
}

// serveWeb starts the web servers, and watches the wire.
func (l *Lab) serveWeb(log *slog.Logger) (err error) {
	if l.capture, err = l.Internet.capture(internetLink, false); err != nil {
		return err
	}
	l.closers = append(l.closers, l.capture)
	if l.web, err = startWeb(l.Internet, l.ca, l.names, log); err != nil {
		return err
	}
	l.closers = append(l.closers, l.web)
	return nil
}

// serve starts everything else that answers on the internet.
func (l *Lab) serve(zone *zone, public []netip.Addr, log *slog.Logger) (err error) {
	if l.names, err = startNameserver(l.Internet, zone, log); err != nil {
		return err
	}
	l.closers = append(l.closers, l.names)
	streams, err := startStreams(l.Internet)
	if err != nil {
		return err
	}
	l.closers = append(l.closers, streams)
	echo, err := startEcho(l.Internet, public)
	if err != nil {
		return err
	}
	l.closers = append(l.closers, echo)
	return nil
}

// Close ends every process of the node, all servers and both namespaces, and
// waits for that. It may be called more than once.
func (l *Lab) Close() error {
	l.once.Do(func() {
		l.unwatch()
		for i := len(l.closers) - 1; i >= 0; i-- {
			l.closed = errors.Join(l.closed, l.closers[i].Close())
		}
	})
	return l.closed
}

// CA is the certificate, in PEM, of the authority that signed all the
// internet's certificates.
func (l *Lab) CA() []byte { return l.ca.pem }

// Certificate issues a certificate for these names and addresses, signed by
// the lab's authority. Both results are PEM.
func (l *Lab) Certificate(names ...string) (cert, key []byte, err error) {
	return l.ca.issuePEM(names)
}

// SetRecords replaces the records that Config.Records gave.
func (l *Lab) SetRecords(records string) error {
	zone, err := parseZone(defaultRecords, records)
	if err != nil {
		return err
	}
	l.names.setZone(zone)
	return nil
}

// Queries lists the DNS queries that the internet has seen, oldest first.
func (l *Lab) Queries() []Query { return l.names.seen.list() }

// Requests lists the HTTP requests that the internet has seen, oldest first; a
// bare lab sees none.
func (l *Lab) Requests() []Request {
	if l.web == nil {
		return nil
	}
	return l.web.seen.list()
}

// Packets lists what has arrived at the internet's end of the wire, as
// Capture.Packets does; in a bare lab that is nothing.
func (l *Lab) Packets() []Packet {
	if l.capture == nil {
		return nil
	}
	return l.capture.Packets()
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
