package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"reflect"
	"testing"

	"github.com/moat-sandbox/moat/internal/app"
)

func TestCertificateSources(t *testing.T) {
	base := []string{"--https", ":8443", "--domain", "moat.test"}
	for _, c := range []struct {
		args []string
		own  bool
		acme app.ACME
	}{
		{[]string{"--tls-ca"}, true, app.ACME{}},
		{[]string{"--acme", "https://ca.test/dir", "--acme-email", "op@moat.test"}, false, app.ACME{Directory: "https://ca.test/dir", Email: "op@moat.test"}},
		{[]string{"--http", "", "--acme", "https://ca.test/dir", "--acme-hook", "/bin/true"}, false, app.ACME{Directory: "https://ca.test/dir", Hook: "/bin/true"}},
	} {
		config, code, stderr := serveWith(t, nil, append(base, c.args...)...)
		if code != exitOK || stderr != "" || config.TLSOwnCA != c.own || !reflect.DeepEqual(config.ACME, c.acme) {
			t.Errorf("%q: %v %+v, exit code %d, stderr %q", c.args, config.TLSOwnCA, config.ACME, code, stderr)
		}
	}
}

// The authority is made once, and is for the domain alone.
func TestCAIsPrinted(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) (string, int) {
		var out bytes.Buffer
		c := &cli{stdout: &out, stderr: &out, env: map[string]string{"MOAT_DATA_DIR": dir, "MOAT_DOMAIN": "moat.test:8443"}}
		code := c.main(t.Context(), append([]string{"ca"}, args...))
		return out.String(), code
	}
	first, code := run()
	block, _ := pem.Decode([]byte(first))
	if code != exitOK || block == nil {
		t.Fatalf("exit code %d: %s", code, first)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !ca.IsCA || len(ca.PermittedDNSDomains) != 1 || ca.PermittedDNSDomains[0] != "moat.test" {
		t.Errorf("%+v, %v", ca, err)
	}
	if again, _ := run(); again != first {
		t.Error("another call made another authority")
	}
	if out, code := run("--domain", "other.test"); code != exitError {
		t.Errorf("for another domain: exit code %d: %s", code, out)
	}
}
