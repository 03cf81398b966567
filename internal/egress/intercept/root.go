// Package intercept makes the certificates with which the proxy answers in
// the place of servers, where a policy looks at single requests.
//
// There is one root for an installation. Every sandbox trusts it from its
// start, so that a rule that comes later finds it there. It signs only
// intermediates, one for each sandbox and set of rules, and each of those can
// vouch for nothing but the hosts of these rules: what a sandbox's rules do not
// name cannot be impersonated to it, not even by mistake, because the
// sandbox's own TLS libraries refuse it.
package intercept

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

const (
	rootLife = 10 * 365 * 24 * time.Hour
	// skew is how far behind or ahead the clock of a sandbox may be.
	skew = 24 * time.Hour
)

// PEM block types of the root's file.
const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
)

// Root is the certificate authority of an installation.
type Root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// PEM returns the root's certificate, which sandboxes are to trust.
func (r *Root) PEM() []byte { return append([]byte(nil), r.pem...) }

// OpenRoot reads the root from a file, which holds the key as well and must be
// the owner's alone. If there is no file a new root is made and kept there. A
// file that cannot be used is an error and never replaced: running sandboxes
// trust what is in it.
func OpenRoot(path string) (*Root, error) { return openRoot(path, time.Now()) }

func openRoot(path string, now time.Time) (*Root, error) {
	r, err := readRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		if r, err = newRoot(now); err == nil {
			err = r.write(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("egress CA: %w", err)
	}
	if now.After(r.cert.NotAfter) {
		return nil, fmt.Errorf("egress CA: the certificate in %s has expired on %s; without the file a new one is made, which only new sandboxes trust",
			path, r.cert.NotAfter.Format(time.DateOnly))
	}
	return r, nil
}

// newRoot makes a root. That its name is random keeps the roots of two
// installations, or of one after another, from being mistaken for each other.
func newRoot(now time.Time) (*Root, error) {
	serial := newSerial()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"moat"}, CommonName: fmt.Sprintf("moat egress CA %012x", new(big.Int).Rsh(serial, serialBits-48))},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(rootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := sign(template, template, key, key)
	if err != nil {
		return nil, err
	}
	return &Root{cert: cert, key: key, pem: encode(blockCertificate, cert.Raw)}, nil
}

func readRoot(path string) (*Root, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %v, want a file that is its owner's alone", path, mode)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := parseRoot(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// parseRoot reads what write has written. Errors never quote it.
func parseRoot(raw []byte) (*Root, error) {
	certBlock, rest := pem.Decode(raw)
	if certBlock == nil || certBlock.Type != blockCertificate {
		return nil, errors.New("does not begin with a certificate in PEM")
	}
	keyBlock, _ := pem.Decode(rest)
	if keyBlock == nil || keyBlock.Type != blockKey {
		return nil, errors.New("has no private key in PEM after the certificate")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, errors.New("its certificate cannot be read")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, errors.New("its private key cannot be read")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	switch {
	case !ok || !key.PublicKey.Equal(cert.PublicKey):
		return nil, errors.New("its private key is not that of the certificate")
	case !cert.IsCA:
		return nil, errors.New("its certificate is not that of an authority")
	}
	return &Root{cert: cert, key: key, pem: encode(blockCertificate, cert.Raw)}, nil
}

// write keeps the root in a file that is either whole or not there.
func (r *Root) write(path string) (err error) {
	der, err := x509.MarshalPKCS8PrivateKey(r.key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // of mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(append(r.PEM(), encode(blockKey, der)...))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// serialBits keeps serial numbers within 20 bytes and positive (RFC 5280,
// section 4.1.2.2).
const serialBits = 144

func newSerial() *big.Int {
	raw := make([]byte, serialBits/8)
	_, _ = rand.Read(raw) // documented never to fail
	raw[0] |= 0x40        // never zero, always of the same length
	return new(big.Int).SetBytes(raw)
}

// sign makes a certificate for a key, and reads it back.
func sign(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
