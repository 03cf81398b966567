package guest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/guest/session"
)

func (d *daemon) file(name string) string {
	d.t.Helper()
	content, err := os.ReadFile(filepath.Join(d.root, name))
	if err != nil {
		d.t.Error(err)
	}
	return string(content)
}

func (d *daemon) environment() map[string]string {
	d.t.Helper()
	res := d.do("GET", "/envs", nil, map[string]string{session.TokenHeader: d.token})
	var env map[string]string
	if err := json.Unmarshal([]byte(read(d.t, res)), &env); err != nil {
		d.t.Fatal(err)
	}
	return env
}

func certificate(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestSetupComesFirst(t *testing.T) {
	root := t.TempDir()
	// As many images have it: a link to where nothing is.
	if err := os.MkdirAll(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/no/such/stub-resolv.conf", root+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	d := startIn(t, root, api.GuestSetup{Hostname: "box", Nameservers: []string{"8.8.8.8", "2001:db8::1"}})
	for name, want := range map[string]string{
		"etc/resolv.conf": "nameserver 8.8.8.8\nnameserver 2001:db8::1\n",
		"etc/hostname":    "box\n",
		"etc/hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox\n",
	} {
		if got := d.file(name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
}

func TestSetupThatFails(t *testing.T) {
	key := "-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n"
	for text, setup := range map[string]api.GuestSetup{
		"dns.example":        {Nameservers: []string{"dns.example"}},
		"nameservers":        {Nameservers: []string{"8.8.8.8\nsearch x"}},
		"hostname":           {Hostname: "a\nb"},
		"caBundle":           {CABundle: "no certificate"},
		"EC PRIVATE KEY":     {CABundle: key},
		"certificate 1":      {CABundle: "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"},
		"write etc/hostname": {Hostname: "box"},
	} {
		t.Run(text, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(root+"/etc/hostname/taken", 0o755); err != nil {
				t.Fatal(err)
			}
			d := startIn(t, root, setup)
			if status, body := d.init(api.GuestInit{}, ""); status != 500 || !strings.Contains(body, text) {
				t.Errorf("init: %d %s, want 500 with %q", status, body, text)
			}
			if res := d.do("GET", "/envs", nil, nil); res.StatusCode != 503 {
				t.Errorf("a sandbox that could not be set up was initialised: %d", res.StatusCode)
			}
		})
	}
}

func TestInitEquipsTheSandbox(t *testing.T) {
	d := start(t)
	status, body := d.init(api.GuestInit{
		AccessToken: "tok", SandboxID: "i123", TemplateID: "base",
		EnvVars: map[string]string{"A": "1", "E2B_SANDBOX_ID": "forged"},
	}, "")
	if status != 204 {
		t.Fatalf("init: %d %s", status, body)
	}
	for name, want := range map[string]string{
		"run/e2b/.E2B_SANDBOX":     "true",
		"run/e2b/.E2B_SANDBOX_ID":  "i123",
		"run/e2b/.E2B_TEMPLATE_ID": "base",
	} {
		if got := d.file(name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	d.token = "tok"
	env := d.environment()
	if len(env) != 4 || env["A"] != "1" || env["E2B_SANDBOX"] != "true" || env["E2B_SANDBOX_ID"] != "i123" || env["E2B_TEMPLATE_ID"] != "base" {
		t.Errorf("environment = %v", env)
	}
	if o := run(t, d.process(nil), shell("echo $A $E2B_SANDBOX $SSL_CERT_FILE")); o.stdout != "1 true\n" {
		t.Errorf("a command says %q", o.stdout)
	}
}

func TestInitAgainNeedsTheToken(t *testing.T) {
	d := ready(t, api.GuestInit{AccessToken: "first", EnvVars: map[string]string{"A": "1"}})
	for _, c := range []struct{ header, body string }{{"", ""}, {"", "other"}, {"other", "first"}} {
		if status, body := d.init(api.GuestInit{AccessToken: c.body}, c.header); status != 401 || body != refused {
			t.Errorf("header %q, body %q: %d %s", c.header, c.body, status, body)
		}
	}
	if env := d.environment(); env["A"] != "1" {
		t.Errorf("a refused init changed the environment to %v", env)
	}
	// The same token in the body proves as much; variables are replaced.
	if status, body := d.init(api.GuestInit{AccessToken: "first", EnvVars: map[string]string{"B": "2"}}, ""); status != 204 {
		t.Errorf("%d %s", status, body)
	}
	if env := d.environment(); env["A"] != "" || env["B"] != "2" || env["E2B_SANDBOX"] != "true" {
		t.Errorf("environment = %v", env)
	}
	// With it in the header the token can be changed.
	if status, body := d.init(api.GuestInit{AccessToken: "second"}, "first"); status != 204 {
		t.Errorf("%d %s", status, body)
	}
	if res := d.do("GET", "/envs", nil, map[string]string{session.TokenHeader: "first"}); res.StatusCode != 401 {
		t.Errorf("the old token still works: %d", res.StatusCode)
	}
}

func TestInitRefusals(t *testing.T) {
	d := start(t)
	post := func(body string) (int, string) {
		res := d.do("POST", "/init", strings.NewReader(body), nil)
		return res.StatusCode, read(t, res)
	}
	for body, text := range map[string]string{
		``:                             "incomplete",
		`{`:                            "incomplete",
		`{"accessToken":5}`:            "accessToken must be a string",
		`{"envVars":{"A":1}}`:          "envVars must be a string",
		`{"other":1}`:                  "other",
		`{"envVars":{"":"x"}}`:         "envVars",
		`{"envVars":{"A=B":"x"}}`:      "envVars",
		`{"envVars":{"A":"x\u0000y"}}`: "envVars",
		`{"hostname":"a"}`:             "hostname",
		`{"sandboxID":"a b"}`:          "sandboxID",
		`{"templateID":"ü"}`:           "templateID",
		`{"defaultUser":"ghost"}`:      "unknown user ghost",
		`{"defaultWorkdir":"a\u0000"}`: "defaultWorkdir",
	} {
		status, got := post(body)
		if status != 400 || !strings.Contains(got, text) {
			t.Errorf("%s: %d %s, want 400 with %q", body, status, got, text)
		}
	}
	if res := d.do("GET", "/envs", nil, nil); res.StatusCode != 503 {
		t.Errorf("a refused init initialised the sandbox: %d", res.StatusCode)
	}
}

func TestCertificatesAreTrusted(t *testing.T) {
	for name, c := range map[string]struct {
		stores map[string]string // content, or a link's target
		first  string
	}{
		"Debian":  {map[string]string{"etc/ssl/certs/ca-certificates.crt": "SYSTEM\n"}, "/etc/ssl/certs/ca-certificates.crt"},
		"Alpine":  {map[string]string{"etc/ssl/certs/ca-certificates.crt": "SYSTEM\n", "etc/ssl/cert.pem": "->certs/ca-certificates.crt"}, "/etc/ssl/certs/ca-certificates.crt"},
		"RHEL":    {map[string]string{"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem": "SYSTEM", "etc/pki/tls/certs/ca-bundle.crt": "->../../ca-trust/extracted/pem/tls-ca-bundle.pem"}, "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"},
		"nothing": {nil, "/etc/ssl/certs/ca-certificates.crt"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(root+"/etc/sudoers.d", 0o755); err != nil {
				t.Fatal(err)
			}
			for file, content := range c.stores {
				path := filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				err := error(nil)
				if target, link := strings.CutPrefix(content, "->"); link {
					err = os.Symlink(target, path)
				} else {
					err = os.WriteFile(path, []byte(content), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			one, two := certificate(t, "one"), certificate(t, "two")
			d := startIn(t, root, api.GuestSetup{CABundle: one, Roots: "SYSTEM\n"})
			if status, body := d.init(api.GuestInit{EnvVars: map[string]string{"CURL_CA_BUNDLE": "mine"}}, ""); status != 204 {
				t.Fatalf("init: %d %s", status, body)
			}
			env := d.environment()
			if env["SSL_CERT_FILE"] != c.first || env["REQUESTS_CA_BUNDLE"] != c.first || env["CURL_CA_BUNDLE"] != "mine" || env["GIT_SSL_CAINFO"] != c.first {
				t.Errorf("environment = %v, want %s", env, c.first)
			}
			if got := d.file(env["NODE_EXTRA_CA_CERTS"]); got != one {
				t.Errorf("the extra certificates are %q", got)
			}
			if got := d.file("usr/local/share/ca-certificates/moat-extra-ca.crt"); got != one {
				t.Errorf("the certificates to be found again are %q", got)
			}
			store := d.file(c.first)
			if strings.Count(store, one) != 1 || !strings.HasPrefix(store, "SYSTEM\n") {
				t.Errorf("the store is %q", store)
			}
			// Another bundle replaces this one and leaves the system's alone.
			d.stop()
			d = startIn(t, root, api.GuestSetup{CABundle: two})
			store = d.file(c.first)
			if strings.Contains(store, one) || strings.Count(store, two) != 1 || !strings.HasPrefix(store, "SYSTEM\n") {
				t.Errorf("the store is then %q", store)
			}
			if got := d.file("etc/sudoers.d/moat-extra-ca"); !strings.HasPrefix(got, "Defaults env_keep += \"AWS_CA_BUNDLE ") || !strings.HasSuffix(got, " SSL_CERT_FILE\"\n") {
				t.Errorf("sudo is told %q", got)
			}
			for _, file := range []string{"etc/environment", "etc/profile.d/moat-extra-ca.sh"} {
				if got := d.file(file); strings.Count(got, "SSL_CERT_FILE=") != 1 || !strings.Contains(got, c.first) {
					t.Errorf("%s holds %q", file, got)
				}
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	d := ready(t, api.GuestInit{})
	res := d.do("GET", "/metrics", nil, nil)
	var m map[string]float64
	if err := json.Unmarshal([]byte(read(t, res)), &m); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cpu_count", "mem_total", "mem_used", "mem_cache", "mem_total_mib", "mem_used_mib", "disk_total", "disk_used"} {
		if m[name] <= 0 {
			t.Errorf("%s = %v", name, m[name])
		}
	}
	if age := time.Now().Unix() - int64(m["ts"]); age < 0 || age > 60 || m["mem_used"] > m["mem_total"] || m["disk_used"] > m["disk_total"] || len(m) != 10 {
		t.Errorf("metrics = %v", m)
	}
}

func TestLoadIsMeasured(t *testing.T) {
	l := newLoad()
	if _, err := l.percent(l.at.Add(time.Second), 1); err != nil { // from here on
		t.Fatal(err)
	}
	before, err := processorTime()
	if err != nil {
		t.Fatal(err)
	}
	used := before
	for used-before < 200*time.Millisecond {
		if used, err = processorTime(); err != nil { // which costs time itself
			t.Fatal(err)
		}
	}
	got, err := l.percent(l.at.Add(time.Second), 1)
	if err != nil || got < 20 || got > 100 {
		t.Errorf("load = %v, %v; want at least 20", got, err)
	}
	if again, err := l.percent(l.at.Add(minInterval/2), 1); err != nil || again != got {
		t.Errorf("at once again = %v, %v; want %v", again, err, got)
	}
}
