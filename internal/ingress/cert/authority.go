package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	authorityLife = 5 * 365 * 24 * time.Hour
	leafLife      = 7 * 24 * time.Hour
	// renewBefore is the rest of a leaf's life in which it is not shown to new
	// clients any more.
	renewBefore = 2 * 24 * time.Hour
	// backdate helps clients whose clock is behind.
	backdate = time.Hour
	// maxLeaves bounds the memory that clients who ask for many names can fill.
	maxLeaves = 4096
)

// Authority is a certificate authority of the server's own. Who installs it
// trusts it for names below the server's domain and for loopback addresses, and
// for nothing else, also if its key is stolen.
//
// Each host gets a certificate of its own, when it is first asked for: browsers
// do not accept "*.localhost".
type Authority struct {
	domain string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	leaf   *ecdsa.PrivateKey // of all leaves, new with each start

	mu     sync.Mutex
	leaves map[string]*tls.Certificate // by host; guarded by mu
}

// OpenAuthority reads the authority for a domain from two files in dir, which
// is created, with the authority, when there is none yet.
func OpenAuthority(dir, domain string) (*Authority, error) {
	a := &Authority{domain: lower(domain), leaves: make(map[string]*tls.Certificate)}
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	_, err := os.Stat(certFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = a.create(certFile, keyFile)
	case err == nil:
		err = a.read(certFile, keyFile)
	}
	if err == nil {
		a.leaf, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	return a, nil
}

// create makes the authority and writes the key first: without the certificate
// there is none, so an interrupted create is done again.
func (a *Authority) create(certFile, keyFile string) (err error) {
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "moat CA for " + a.domain},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,

		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{a.domain},
		PermittedIPRanges:           loopback(),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(certFile), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(certFile, a.PEM(), 0o644)
}

func (a *Authority) read(certFile, keyFile string) error {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return fmt.Errorf("%s is not an authority made by moat", certFile)
	}
	if names := pair.Leaf.PermittedDNSDomains; len(names) != 1 || names[0] != a.domain {
		return fmt.Errorf("%s is for %s, not for %s: remove it to have a new one made", certFile, strings.Join(names, ", "), a.domain)
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter.Add(-leafLife)) {
		return fmt.Errorf("%s expires on %s: remove it to have a new one made", certFile, pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	a.cert, a.key = pair.Leaf, key
	return nil
}

// PEM is the authority's certificate, for clients that shall trust it.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Certificate returns a certificate for the host that a client wants to speak
// to: the domain, a name one label below it, or, for one that names no host,
// this machine.
func (a *Authority) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := lower(strings.TrimSuffix(hello.ServerName, "."))
	if name != "" && !a.covers(name) {
		return nil, fmt.Errorf("no certificate for %q: it is neither %s nor one label below it", name, a.domain)
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if leaf := a.leaves[name]; leaf != nil && now.Before(leaf.Leaf.NotAfter.Add(-renewBefore)) {
		return leaf, nil
	}
	leaf, err := a.issue(name, now)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %q: %w", name, err)
	}
	if len(a.leaves) >= maxLeaves {
		clear(a.leaves) // whoever is still there gets a new one
	}
	a.leaves[name] = leaf
	return leaf, nil
}

// covers reports whether name is ours. It must be a DNS name: what a client
// says is about to be signed.
func (a *Authority) covers(name string) bool {
	if name == a.domain {
		return true
	}
	label, ok := strings.CutSuffix(name, "."+a.domain)
	if !ok || label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	return strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (a *Authority) issue(name string, now time.Time) (*tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: serial(),
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{name},
	}
	if name == "" {
		template.DNSNames = []string{a.domain}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.leaf.Public(), a.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leaf, Leaf: parsed}, nil
}

func loopback() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
		{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	}
}

// serial returns 127 random bits, positive as it must be.
func serial() *big.Int {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // documented never to fail
	raw[0] &= 0x7f
	return new(big.Int).SetBytes(raw)
}

// lower folds ASCII letters alone: others that Unicode folds to them are not
// the same to DNS.
func lower(s string) string {
	return strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}, s)
}
