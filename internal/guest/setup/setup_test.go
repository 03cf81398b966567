package setup_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"maps"
	"math/big"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/guest/setup"
	"github.com/moat-sandbox/moat/internal/guest/setup/keystore"
)

func certificate(t *testing.T, name string) (text string, der []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), der
}

// noted is a directory that notes what is written.
type noted struct {
	setup.Disk
	written map[string]bool
}

func (n noted) Write(name, content string) error {
	n.written[name] = true
	return n.Disk.Write(name, content)
}

// What was done to a template ahead is not done again in its sandboxes, but for
// what lies below usr, which is not the template's.
func TestDoneAhead(t *testing.T) {
	root := setup.Disk(t.TempDir())
	one, der := certificate(t, "one")
	two, _ := certificate(t, "two")
	in := api.GuestSetup{Hostname: "moat", Nameservers: []string{"8.8.8.8"}, CABundle: one, Roots: "ROOTS\n"}
	for _, store := range []string{"etc/ssl/certs/java/cacerts", "usr/lib/jvm/temurin/lib/security/cacerts"} {
		raw, err := keystore.Add([]byte("\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x00"+"the digest, twenty.."), [][]byte{der})
		if err == nil {
			err = root.Write(store, string(raw))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := setup.DoAhead(root, in, slog.Default()); err != nil {
		t.Fatal(err)
	}
	do := func(in api.GuestSetup) (env map[string]string, written map[string]bool) {
		files := noted{root, map[string]bool{}}
		env, err := setup.Do(files, in, slog.Default())
		if err != nil {
			t.Fatal(err)
		}
		return env, files.written
	}

	env, written := do(in)
	if want := map[string]bool{"usr/local/share/ca-certificates/moat-extra-ca.crt": true, "usr/lib/jvm/temurin/lib/security/cacerts": true}; !maps.Equal(written, want) {
		t.Errorf("written again: %v", written)
	}
	if env["SSL_CERT_FILE"] != "/etc/ssl/certs/ca-certificates.crt" || env["NODE_EXTRA_CA_CERTS"] != "/etc/ssl/certs/moat-extra-ca.pem" {
		t.Errorf("environment %v", env)
	}
	for what, other := range map[string]api.GuestSetup{
		"certificates": {Hostname: "moat", Nameservers: []string{"8.8.8.8"}, CABundle: two},
		"name servers": {Hostname: "moat", Nameservers: []string{"9.9.9.9"}, CABundle: one},
		"a name":       {Hostname: "other", Nameservers: []string{"8.8.8.8"}, CABundle: one},
	} {
		if _, written := do(other); !written["etc/ssl/certs/ca-certificates.crt"] || !written["etc/resolv.conf"] || !written["etc/ssl/certs/java/cacerts"] {
			t.Errorf("with other %s only this is written: %v", what, written)
		}
	}

	// What cannot be read was not done.
	if err := root.Write("etc/moat-setup.json", "{"); err != nil {
		t.Fatal(err)
	}
	if _, written := do(in); !written["etc/hosts"] {
		t.Errorf("with a damaged record only this is written: %v", written)
	}
}
