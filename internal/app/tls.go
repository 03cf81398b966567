package app

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/moat-sandbox/moat/internal/ingress/acme"
	"github.com/moat-sandbox/moat/internal/ingress/cert"
)

// certificates are what the HTTPS listener shows.
type certificates struct {
	get func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// issuer gets them from an ACME authority while it runs; nil when they come
	// from elsewhere.
	issuer *acme.Issuer
}

func openCertificates(c Config) (certificates, error) {
	switch {
	case c.ACME.Directory != "":
		return openIssuer(c)
	case c.TLSOwnCA:
		authority, err := openAuthority(c)
		if err != nil {
			return certificates{}, err
		}
		return certificates{get: authority.Certificate}, nil
	}
	files, err := cert.Open(c.TLSCert, c.TLSKey, c.Logger)
	if err != nil {
		return certificates{}, err
	}
	return certificates{get: files.Certificate}, nil
}

// openIssuer asks for a wildcard where DNS records can be set, and otherwise
// for the names that do not belong to sandboxes.
func openIssuer(c Config) (certificates, error) {
	extra, err := readCA(c.ExtraCA)
	if err != nil {
		return certificates{}, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return certificates{}, fmt.Errorf("read the machine's certificate authorities: %w", err)
	}
	roots.AppendCertsFromPEM([]byte(extra))
	domain := hostOnly(c.Domain)
	names := []string{domain, "*." + domain}
	if c.ACME.Hook == "" {
		names = []string{domain, "api." + domain, "sandbox." + domain}
		c.Logger.Warn("without a hook for DNS the certificate is for the API alone: sandboxes are reached over https by path, not by names of their own",
			"names", names)
	}
	issuer, err := acme.Open(acme.Config{
		Directory: c.ACME.Directory, Email: c.ACME.Email, Names: names, Hook: c.ACME.Hook,
		Dir: filepath.Join(c.DataDir, "acme"), Roots: roots, Logger: c.Logger,
	})
	if err != nil {
		return certificates{}, err
	}
	return certificates{get: issuer.Certificate, issuer: issuer}, nil
}

// prove lets an ACME authority find its proofs where the API is.
func (c certificates) prove(api http.Handler) http.Handler {
	if c.issuer == nil {
		return api
	}
	return c.issuer.Prove(api)
}

// CA returns the certificate, in PEM, of the server's own authority for public
// URLs. It makes the authority if there is none yet.
func CA(c Config) ([]byte, error) {
	authority, err := openAuthority(c)
	if err != nil {
		return nil, err
	}
	return authority.PEM(), nil
}

func openAuthority(c Config) (*cert.Authority, error) {
	return cert.OpenAuthority(filepath.Join(c.DataDir, "tls-ca"), hostOnly(c.Domain))
}
