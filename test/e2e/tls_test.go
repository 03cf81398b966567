package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// withoutFiles takes the certificate away that the harness gives.
func withoutFiles(more ...string) harness.Options {
	return harness.Options{Args: append([]string{"--tls-cert", "", "--tls-key", ""}, more...)}
}

// trusting is a client on the node that trusts one authority.
func trusting(t *testing.T, s *harness.Server, authority []byte) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		t.Fatalf("no certificate in %q", authority)
	}
	transport := &http.Transport{
		DialContext: s.Lab.Node.Dial, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestOwnAuthority: a server that nobody gave a certificate is reached over TLS
// by whoever trusts what `moat ca` prints.
func TestOwnAuthority(t *testing.T) {
	s := harness.Start(t, withoutFiles("--tls-ca"))
	var authority bytes.Buffer
	cmd := s.Lab.Node.Command(t.Context(), harness.Binary(t, "moat"), "ca", "--data-dir", s.DataDir, "--domain", lab.Domain)
	cmd.Env, cmd.Stdout = harness.CleanEnv(), &authority
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	client := trusting(t, s, authority.Bytes())
	box := withProber(t, s, api.NewSandbox{})
	box.Start(t, prober+" serve 8080")
	for url, status := range map[string]int{
		publicURL(box, "https", 8080, "/"):      200,
		"https://api." + lab.Domain + "/health": 200,
		"https://127.0.0.1/health":              200,
	} {
		answer, err := client.Get(url)
		if err != nil || answer.StatusCode != status {
			t.Errorf("%s: %v, %v", url, answer, err)
			continue
		}
		answer.Body.Close()
	}
	visits{publicURL(box, "https", 8080, "/x"): "GET 8080-"}.check(t, box) // sandboxes trust it
	if answer, err := s.HTTP().Get("https://api." + lab.Domain + "/health"); err == nil {
		t.Errorf("who does not trust the authority got %s", answer.Status)
	}
}

// TestCertificateIsReplaced: new files are shown without a restart, and a bad
// pair never is.
func TestCertificateIsReplaced(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	shown := func() string {
		answer, err := trusting(t, s, s.Lab.CA()).Get("https://api." + lab.Domain + "/health")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		return answer.TLS.PeerCertificates[0].SerialNumber.String()
	}
	before := shown()
	cert, key, err := s.Lab.Certificate(lab.Domain, "*."+lab.Domain)
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string, data []byte) {
		t.Helper()
		if err := s.Lab.Node.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("/run/lab-cert.pem", cert)
	s.Wait("the server complains of a pair that does not fit", func() bool {
		return shown() == before && bytes.Contains([]byte(s.Output()), []byte("cannot be loaded"))
	})
	write("/run/lab-key.pem", key)
	s.Wait("the new certificate is shown", func() bool { return shown() != before })
}

// pebbleConfig makes Pebble look at the ports where the server is.
const pebbleConfig = `{"pebble": {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
	"certificate": "/run/lab-cert.pem", "privateKey": "/run/lab-key.pem", "httpPort": 80, "tlsPort": 443}}`

// TestCertificateByACME: Pebble, a real ACME authority, runs on the node, looks
// the names up in the laboratory's DNS and asks the server for its proofs.
func TestCertificateByACME(t *testing.T) {
	s := harness.New(t, withoutFiles("--acme", "https://127.0.0.1:14000/dir"))
	if err := s.Lab.Node.WriteFile("/run/pebble.json", []byte(pebbleConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	pebble := s.Lab.Node.Command(t.Context(), harness.Build(t, "github.com/letsencrypt/pebble/v2/cmd/pebble"),
		"-config", "/run/pebble.json", "-dnsserver", lab.DNSServer)
	var said bytes.Buffer
	pebble.Stdout, pebble.Stderr = &said, &said
	if err := pebble.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = pebble.Process.Kill()
		_ = pebble.Wait()
		if t.Failed() {
			t.Logf("Pebble:\n%s", said.String())
		}
	}()
	s.Start()
	var roots []byte
	s.Wait("the authority tells its root", func() bool {
		answer, err := trusting(t, s, s.Lab.CA()).Get("https://127.0.0.1:15000/roots/0")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		var body bytes.Buffer
		_, err = body.ReadFrom(answer.Body)
		roots = body.Bytes()
		return err == nil
	})
	client := trusting(t, s, roots)
	s.Wait("there is a certificate", func() bool {
		answer, err := client.Get(fmt.Sprintf("https://api.%s/health", lab.Domain))
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == 200
	})
	box := withProber(t, s, api.NewSandbox{})
	box.Start(t, prober+" serve 8080")
	answer, err := client.Get(fmt.Sprintf("https://sandbox.%s/sandbox/%s/8080/", lab.Domain, box.ID))
	if err != nil || answer.StatusCode != 200 {
		t.Errorf("by path: %v, %v", answer, err)
	}
	if answer, err := client.Get(publicURL(box, "https", 8080, "/")); err == nil {
		t.Errorf("a name that the certificate is not for: %s", answer.Status)
	}
}
