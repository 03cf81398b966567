package ingress

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// What holds when Config says nothing.
const (
	// DefaultMaxInFlight is for one sandbox.
	DefaultMaxInFlight = 10_000
	// DefaultMaxConnections is for all clients together.
	DefaultMaxConnections = 50_000
	// DefaultMaxUnknown is for one client address and minute.
	DefaultMaxUnknown = 600
	// DefaultMaxHeader is for the headers of one request, in bytes.
	DefaultMaxHeader = 64 << 10
	// MinMaxHeader is the least that can be set.
	MinMaxHeader = maxPlain
	// DefaultHeaderTimeout is for the headers of one request, and for a
	// handshake.
	DefaultHeaderTimeout = 15 * time.Second
)

// Config is what an Ingress is made of.
type Config struct {
	// Domain is the name below which sandboxes have their hosts, such as
	// "sandboxes.example.com" or "localhost". It has no port.
	Domain string
	// Sandboxes finds running sandboxes.
	Sandboxes Lookup
	// API answers every request that is not for a sandbox. Nil refuses them, and
	// with them whatever does not come to a sandbox's own host: where sandboxes call
	// each other, nothing else is served. Over TLS the host must be the one that the
	// connection was opened for.
	API http.Handler
	// IsKey reports whether a value is one of the server's API keys. Such a
	// value is taken out of requests before a sandbox sees them. Nil when
	// there are none to protect.
	IsKey func(value string) bool
	// MaxInFlight bounds the requests and upgraded connections that one
	// sandbox has open at a time; 0 means DefaultMaxInFlight.
	MaxInFlight int
	// MaxConnections bounds the connections that clients have open, those to
	// the API too; one too many is reset. 0 means DefaultMaxConnections.
	MaxConnections int
	// MaxUnknown is how many requests a minute one client address may send for
	// sandboxes that do not exist; 0 means DefaultMaxUnknown. Neighbours in an
	// IPv6 /64 count as one.
	MaxUnknown int
	// MaxHeader bounds the headers of a request, in bytes; 0 means
	// DefaultMaxHeader.
	MaxHeader int
	// HeaderTimeout is all the time that a client has to send the headers of a
	// request; 0 means DefaultHeaderTimeout.
	HeaderTimeout time.Duration
	// RefusePreflight refuses preflights (CORS) for private ports like every
	// request without a token. Otherwise the ingress answers them itself: yes
	// to every origin, method and header, no to cookies.
	RefusePreflight bool
	// Observer, when not nil, is told of every request for a known sandbox.
	Observer Observer
	Logger   *slog.Logger
}

// New checks the configuration and returns an Ingress that serves at once.
func New(cfg Config) (*Ingress, error) {
	domain, err := checkDomain(cfg.Domain)
	if err != nil {
		return nil, err
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	isKey := cfg.IsKey
	if isKey == nil {
		isKey = func(string) bool { return false }
	}
	in := &Ingress{
		domain:          domain,
		sandboxes:       cfg.Sandboxes,
		api:             cfg.API,
		isKey:           isKey,
		maxInFlight:     orDefault(cfg.MaxInFlight, DefaultMaxInFlight),
		maxHeader:       orDefault(cfg.MaxHeader, DefaultMaxHeader),
		headerTimeout:   orDefault(cfg.HeaderTimeout, DefaultHeaderTimeout),
		refusePreflight: cfg.RefusePreflight,
		observer:        cfg.Observer,
		log:             cfg.Logger,
		proxyLog:        slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
		strangers:       newStrangers(orDefault(cfg.MaxUnknown, DefaultMaxUnknown)),
		closing:         make(chan struct{}),
		upstreams:       make(map[<-chan struct{}]*upstream),
	}
	in.clients.limit = int64(orDefault(cfg.MaxConnections, DefaultMaxConnections))
	return in, nil
}

func (cfg Config) check() error {
	switch {
	case cfg.Sandboxes == nil:
		return errors.New("ingress: no lookup for sandboxes given")
	case cfg.Logger == nil:
		return errors.New("ingress: no logger given")
	case cfg.MaxInFlight < 0:
		return fmt.Errorf("ingress: limit of requests in flight %d is negative", cfg.MaxInFlight)
	case cfg.MaxConnections < 0:
		return fmt.Errorf("ingress: limit of connections %d is negative", cfg.MaxConnections)
	case cfg.MaxUnknown < 0:
		return fmt.Errorf("ingress: limit of requests for unknown sandboxes %d is negative", cfg.MaxUnknown)
	case cfg.MaxHeader != 0 && cfg.MaxHeader < MinMaxHeader:
		return fmt.Errorf("ingress: limit of %d bytes of headers is less than %d", cfg.MaxHeader, MinMaxHeader)
	case cfg.HeaderTimeout < 0:
		return fmt.Errorf("ingress: time for headers %v is negative", cfg.HeaderTimeout)
	}
	return nil
}

// orDefault is value unless it is 0.
func orDefault[T int | time.Duration](value, standard T) T {
	if value == 0 {
		return standard
	}
	return value
}
