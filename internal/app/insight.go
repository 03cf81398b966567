package app

import (
	"crypto/x509"
	"fmt"

	"github.com/moat-sandbox/moat/internal/egress/intercept"
	"github.com/moat-sandbox/moat/internal/policy"
)

// insight is what the proxy needs to look into TLS where rules ask for it.
type insight struct {
	authority *intercept.Authority
	// roots are whom servers may be certified by; nil means whom the machine
	// trusts.
	roots   *x509.CertPool
	secrets policy.Secrets
}

// newInsight lets servers be certified by extra authorities too, in PEM, which
// may be none.
func newInsight(root *intercept.Root, extra string, secrets policy.Secrets) (look insight, err error) {
	look.secrets = secrets
	if look.authority, err = intercept.New(intercept.Config{Root: root}); err != nil {
		return insight{}, err
	}
	if extra == "" {
		return look, nil
	}
	if look.roots, err = x509.SystemCertPool(); err != nil {
		return insight{}, fmt.Errorf("certificates that this machine trusts: %w", err)
	}
	look.roots.AppendCertsFromPEM([]byte(extra)) // they were read before
	return look, nil
}
