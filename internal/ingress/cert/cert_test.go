package cert

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func ask(name string) *tls.ClientHelloInfo { return &tls.ClientHelloInfo{ServerName: name} }

func openAuthority(t *testing.T, dir, domain string) *Authority {
	t.Helper()
	a, err := OpenAuthority(dir, domain)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func trusting(a *Authority) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.PEM())
	return pool
}

func TestAuthorityCovers(t *testing.T) {
	for _, domain := range []string{"localhost", "Sandboxes.Example.com"} {
		a := openAuthority(t, t.TempDir(), domain)
		low := strings.ToLower(domain)
		for sni, verify := range map[string]string{
			low: low, "3000-iabc." + low: "3000-iabc." + low, "API." + domain: "api." + low, "api." + low + ".": "api." + low, "": "127.0.0.1",
		} {
			leaf, err := a.Certificate(ask(sni))
			if err != nil {
				t.Errorf("%q: %v", sni, err)
				continue
			}
			if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: verify, Roots: trusting(a)}); err != nil {
				t.Errorf("%q: %v", sni, err)
			}
		}
		for _, sni := range []string{
			"example.com", "evil" + low, "." + low, "a.b." + low, "-a." + low, "a-." + low, "a_b." + low, "*." + low,
			strings.Repeat("a", 64) + "." + low, "a." + low + ".evil.example", "10.0.0.1", "\u212a." + low, "a\x00." + low,
		} {
			if _, err := a.Certificate(ask(sni)); err == nil {
				t.Errorf("%q got a certificate", sni)
			}
		}
	}
}

// A stolen key is good for this server's names alone.
func TestAuthorityIsConstrained(t *testing.T) {
	a := openAuthority(t, t.TempDir(), "moat.test")
	for _, foreign := range []string{"bank.example", "evilmoat.test"} {
		stolen := &Authority{domain: foreign, cert: a.cert, key: a.key, leaf: a.leaf}
		leaf, err := stolen.issue(foreign, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: foreign, Roots: trusting(a)}); err == nil {
			t.Errorf("%s is trusted", foreign)
		}
	}
	if !a.cert.PermittedDNSDomainsCritical || len(a.cert.PermittedIPRanges) != 2 || a.cert.MaxPathLen != 0 {
		t.Errorf("constraints of the authority: %+v", a.cert)
	}
}

func TestAuthorityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := openAuthority(t, dir, "moat.test")
	if info, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file %v, %v", info, err)
	}
	second := openAuthority(t, dir, "moat.test")
	if !bytes.Equal(first.PEM(), second.PEM()) {
		t.Error("a restart made another authority")
	}
	leaf, err := second.Certificate(ask("a.moat.test"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: "a.moat.test", Roots: trusting(first)}); err != nil {
		t.Error(err)
	}
	if _, err := OpenAuthority(dir, "other.test"); err == nil || !strings.Contains(err.Error(), "moat.test, not for other.test") {
		t.Errorf("for another domain: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir, "moat.test"); err == nil {
		t.Error("opened without its key")
	}
	block, _ := pem.Decode(first.PEM())
	if block == nil || block.Type != "CERTIFICATE" {
		t.Error("PEM is no certificate")
	}
}

func TestLeavesAreRenewed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, dir, "moat.test")
		get := func() *tls.Certificate {
			leaf, err := a.Certificate(ask("a.moat.test"))
			if err != nil {
				t.Fatal(err)
			}
			return leaf
		}
		first := get()
		time.Sleep(leafLife - renewBefore - time.Minute)
		if get() != first {
			t.Error("renewed too early")
		}
		time.Sleep(2 * time.Minute)
		if get() == first {
			t.Error("not renewed")
		}
		for i := range maxLeaves + 10 {
			if _, err := a.Certificate(ask(fmt.Sprintf("n%d.moat.test", i))); err != nil {
				t.Fatal(err)
			}
		}
		if len(a.leaves) > maxLeaves {
			t.Errorf("%d leaves are kept", len(a.leaves))
		}
		time.Sleep(authorityLife - leafLife)
		if _, err := OpenAuthority(dir, "moat.test"); err == nil || !strings.Contains(err.Error(), "expires") {
			t.Errorf("an authority at its end: %v", err)
		}
	})
}

// write puts a pair for a name into the files.
func write(t *testing.T, dir, name, certFile, keyFile string) {
	t.Helper()
	a := openAuthority(t, filepath.Join(dir, name), name)
	leaf, err := a.issue(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if file == "" {
			continue
		}
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp := time.Now() // the bubble's: files do not know of it
		if err := os.Chtimes(file, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFilesAreReplaced(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	synctest.Test(t, func(t *testing.T) {
		if _, err := Open(certFile, keyFile, log); err == nil {
			t.Fatal("opened files that are not there")
		}
		write(t, dir, "one.test", certFile, keyFile)
		f, err := Open(certFile, keyFile, log)
		if err != nil {
			t.Fatal(err)
		}
		want := func(when, name string) {
			t.Helper()
			time.Sleep(lookEvery)
			got, err := f.Certificate(nil)
			if err != nil || got.Leaf.DNSNames[0] != name {
				t.Errorf("%s: got %v, %v, want %s", when, got.Leaf.DNSNames, err, name)
			}
		}
		want("at first", "one.test")
		write(t, dir, "two.test", certFile, "")
		want("half replaced", "one.test")
		want("half replaced for a while", "one.test")
		write(t, dir, "three.test", certFile, keyFile)
		want("replaced", "three.test")
		if err := os.Remove(keyFile); err != nil {
			t.Fatal(err)
		}
		want("removed", "three.test")
		want("removed for a while", "three.test")
		write(t, dir, "four.test", certFile, keyFile)
		want("back", "four.test")
	})
	if n := strings.Count(out.String(), "cannot be loaded"); n != 2 {
		t.Errorf("complained %d times:\n%s", n, &out)
	}
	if n := strings.Count(out.String(), "certificate replaced"); n != 2 {
		t.Errorf("told of %d replacements:\n%s", n, &out)
	}
}

// A client that trusts the authority gets through to any host of the domain.
func TestHandshake(t *testing.T) {
	a := openAuthority(t, t.TempDir(), "localhost")
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: a.Certificate})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	for name, ok := range map[string]bool{"3000-iabc.localhost": true, "127.0.0.1": true, "localhost": true, "a.b.localhost": false, "example.com": false} {
		raw, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn := tls.Client(raw, &tls.Config{ServerName: name, RootCAs: trusting(a)})
		if err := conn.Handshake(); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
		raw.Close()
	}
}
