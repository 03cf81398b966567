package app

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

// hostRoots are the certificates that this machine trusts, for sandboxes whose
// template knows none. A machine without any has none to give.
func hostRoots() string {
	for _, path := range []string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
	} {
		if raw, err := os.ReadFile(path); err == nil {
			return string(raw)
		}
	}
	return ""
}

// trustedCA returns, in PEM, whom sandboxes and the connections made for them trust
// besides the machine's authorities: the operator's, and the one that vouches for
// public URLs if that is this server's own. It may be none.
func trustedCA(c Config) (string, error) {
	extra, err := readCA(c.ExtraCA)
	if err != nil || !c.TLSOwnCA {
		return extra, err
	}
	own, err := CA(c)
	return extra + string(own), err
}

// readCA reads the operator's extra certificate authorities. A file without any
// is an error: trusting nothing more is said by giving no file.
func readCA(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read extra CA: %w", err)
	}
	count := 0
	for rest := raw; ; count++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return "", fmt.Errorf("read extra CA: %s holds a %s, want certificates only", path, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", fmt.Errorf("read extra CA: certificate %d of %s: %w", count+1, path, err)
		}
	}
	if count == 0 {
		return "", fmt.Errorf("read extra CA: %s holds no PEM certificate", path)
	}
	if !bytes.HasSuffix(raw, []byte("\n")) {
		raw = append(raw, '\n') // more certificates follow
	}
	return string(raw), nil
}
