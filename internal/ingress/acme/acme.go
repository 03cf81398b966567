// Package acme gets the public listeners' certificate from a certificate
// authority that speaks ACME (RFC 8555), and renews it in time.
//
// A certificate for all sandboxes is one for "*.<domain>", and authorities want
// that proved in the DNS. How a record is set differs with every provider of
// DNS, so that is left to a program of the operator's. Without such a program
// control is proved over HTTP, for fixed names only.
package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what an Issuer is made of.
type Config struct {
	// Directory is the URL where the authority says what it offers.
	Directory string
	// Email is told to the authority for its messages; it may be empty.
	Email string
	// Names are what the certificate shall be for. A wildcard needs Hook.
	Names []string
	// Hook is a program that sets DNS records: it is run as
	//
	//	HOOK present|cleanup NAME VALUE
	//
	// for the TXT record of a name, and returns once the world sees the change.
	// Empty means that control is proved over HTTP, at port 80 of each name.
	Hook string
	// Dir keeps the account's key and the certificate, closed to others.
	Dir string
	// Roots are trusted when the authority itself is spoken to; nil means the
	// machine's own.
	Roots  *x509.CertPool
	Logger *slog.Logger
}

// Issuer has a certificate, or tries to get one.
type Issuer struct {
	Config
	http    *http.Client
	account *ecdsa.PrivateKey
	current atomic.Pointer[tls.Certificate] // nil until there is one

	mu     sync.Mutex
	proofs map[string]string // path to content, while an authority looks for it; guarded by mu
}

// ErrNone: no certificate has been issued yet.
var ErrNone = errors.New("the authority has not issued a certificate yet")

// Open checks the configuration, makes an account's key at the first time, and
// takes up a certificate of before. It contacts nobody.
func Open(c Config) (*Issuer, error) {
	wildcard := slices.ContainsFunc(c.Names, isWildcard)
	switch {
	case c.Directory == "" || c.Dir == "" || c.Logger == nil:
		return nil, errors.New("acme: incomplete configuration")
	case len(c.Names) == 0:
		return nil, errors.New("acme: no names to get a certificate for")
	case wildcard && c.Hook == "":
		return nil, errors.New("acme: a wildcard can be proved in the DNS only, which needs a hook")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12}
	i := &Issuer{Config: c, http: &http.Client{Transport: transport, Timeout: callTimeout}, proofs: make(map[string]string)}
	var err error
	if i.account, err = i.accountKey(); err != nil {
		return nil, fmt.Errorf("acme: account key: %w", err)
	}
	found, err := i.load()
	if err != nil {
		return nil, fmt.Errorf("acme: load certificate: %w", err)
	}
	if found != nil {
		i.current.Store(found)
	}
	return i, nil
}

// Certificate is for tls.Config's GetCertificate.
func (i *Issuer) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := i.current.Load(); c != nil {
		return c, nil
	}
	return nil, ErrNone
}

const (
	callTimeout  = time.Minute      // for one call to the authority
	orderTimeout = 15 * time.Minute // for all that a certificate takes
	firstRetry   = time.Minute
	lastRetry    = 6 * time.Hour // authorities count failures by the hour
)

// Run gets a certificate and renews it when two thirds of its life are over,
// until ctx ends.
func (i *Issuer) Run(ctx context.Context) error {
	pause := firstRetry
	for {
		wait := time.Until(i.renewal())
		if wait <= 0 {
			err := i.obtain(ctx)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err == nil:
				pause = firstRetry
				if wait = time.Until(i.renewal()); wait <= 0 { // by our clock, which may be wrong
					wait = firstRetry
				}
			default:
				wait, pause = retryAfter(err, pause), min(2*pause, lastRetry)
				i.Logger.Error("no TLS certificate from the authority", "directory", i.Directory, "names", i.Names, "again_in", wait, "err", err)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// renewal is when the certificate is to be replaced.
func (i *Issuer) renewal() time.Time {
	c := i.current.Load()
	if c == nil {
		return time.Time{}
	}
	life := c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)
	return c.Leaf.NotAfter.Add(-life / 3)
}
