package acme

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// home holds the files of one authority: an account is worth nothing with
// another.
func (i *Issuer) home() string {
	sum := sha256.Sum256([]byte(i.Directory))
	return filepath.Join(i.Dir, hex.EncodeToString(sum[:4]))
}

func (i *Issuer) accountKey() (*ecdsa.PrivateKey, error) {
	path := filepath.Join(i.home(), "account.key")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return i.newAccountKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T", path, parsed)
	}
	return key, nil
}

func (i *Issuer) newAccountKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := keyBlock(key)
	if err != nil {
		return nil, err
	}
	return key, replace(path, pem.EncodeToMemory(block))
}

// The certificate is in one file with its key, so that the two always fit.
func (i *Issuer) certificateFile() string { return filepath.Join(i.home(), "certificate.pem") }

// load returns the certificate that was kept, or nil where there is none for
// the names that are wanted now.
func (i *Issuer) load() (*tls.Certificate, error) {
	raw, err := os.ReadFile(i.certificateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	kept, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", i.certificateFile(), err)
	}
	if !i.covers(kept.Leaf) {
		return nil, nil
	}
	return &kept, nil
}

func (i *Issuer) save(c *tls.Certificate) error {
	block, err := keyBlock(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	_ = pem.Encode(&out, block) // a buffer takes everything
	for _, der := range c.Certificate {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return replace(i.certificateFile(), out.Bytes())
}

// covers reports whether a certificate is for every name that is wanted.
func (i *Issuer) covers(leaf *x509.Certificate) bool {
	for _, name := range i.Names {
		if !slices.Contains(leaf.DNSNames, name) {
			return false
		}
	}
	return true
}

func keyBlock(key *ecdsa.PrivateKey) (*pem.Block, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}, err
}

// replace writes a file that is never seen half written, for its owner alone.
func replace(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, data, 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}
