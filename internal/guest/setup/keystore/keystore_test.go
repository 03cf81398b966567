package keystore_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/moat-sandbox/moat/internal/guest/setup/keystore"
)

func authority(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// owners are the names that Java's own tool finds in a store, whose password it
// checks.
func owners(t *testing.T, store []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cacerts")
	if err := os.WriteFile(path, store, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("keytool", "-list", "-v", "-keystore", path, "-storepass", "changeit").CombinedOutput()
	if err != nil {
		t.Fatalf("keytool: %v\n%s", err, out)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Owner: CN="); ok {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func add(t *testing.T, store []byte, certs ...*x509.Certificate) []byte {
	t.Helper()
	var raw [][]byte
	for _, c := range certs {
		raw = append(raw, c.Raw)
	}
	out, err := keystore.Add(store, raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAdd(t *testing.T) {
	old, first, second := authority(t, "old"), authority(t, "first"), authority(t, "second")
	protected, err := pkcs12.Modern.EncodeTrustStore([]*x509.Certificate{old}, "changeit")
	if err != nil {
		t.Fatal(err)
	}
	open, err := pkcs12.Passwordless.EncodeTrustStore([]*x509.Certificate{old}, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string][]byte{"PKCS #12": protected, "PKCS #12 without password": open} {
		store = add(t, store, first)
		if got := owners(t, store); got != "old first" && got != "first old" {
			t.Errorf("%s: Java finds %q", name, got)
		}
		if got := owners(t, add(t, store, second)); got != "old second" && got != "second old" {
			t.Errorf("%s: after the second time Java finds %q", name, got)
		}
	}
}

func TestAddRefuses(t *testing.T) {
	good := add(t, mustEncode(t), authority(t, "a"))
	for what, store := range map[string][]byte{
		"nothing": nil, "garbage": []byte("garbage"), "cut": good[:len(good)-30], "longer": append(bytes.Clone(good), 0),
		"head only": good[:12], "another version": append([]byte{0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 9}, good[8:]...),
	} {
		if out, err := keystore.Add(store, nil); err == nil || out != nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func mustEncode(t testing.TB) []byte {
	t.Helper()
	store, err := pkcs12.Passwordless.EncodeTrustStore([]*x509.Certificate{authority(t, "old")}, "")
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// FuzzAdd: what an image ships is refused or kept, and can be added to again.
func FuzzAdd(f *testing.F) {
	cert := authority(f, "a")
	store, err := keystore.Add(mustEncode(f), [][]byte{cert.Raw})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(store)
	f.Add(store[:len(store)-1])
	f.Fuzz(func(t *testing.T, store []byte) {
		once, err := keystore.Add(store, [][]byte{cert.Raw})
		if err != nil {
			return
		}
		if twice, err := keystore.Add(once, [][]byte{cert.Raw}); err != nil || len(twice) != len(once) {
			t.Errorf("again: %d bytes after %d, %v", len(twice), len(once), err)
		}
	})
}
