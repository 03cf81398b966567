package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
)

// Java trusts the extra certificates too, wherever it keeps what it trusts, and
// what is no such file is left alone.
func TestJavaTrusts(t *testing.T) {
	root := t.TempDir()
	store := filepath.Join(root, "etc/ssl/certs/java/cacerts")
	link := filepath.Join(root, "usr/lib/jvm/java-17/lib/security/cacerts")
	broken := filepath.Join(root, "opt/old/lib/security/cacerts")
	far := filepath.Join(root, "home/user/.sdkman/candidates/java/21/lib/security/cacerts")
	near := filepath.Join(root, "usr/local/openjdk-8/lib/security/cacerts")
	for _, path := range []string{store, link, broken, far, near} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	base := filepath.Join(t.TempDir(), "base.pem")
	if err := os.WriteFile(base, []byte(certificate(t, "base")), 0o600); err != nil {
		t.Fatal(err)
	}
	keytool(t, "-importcert", "-noprompt", "-alias", "base", "-file", base, "-keystore", store)
	raw, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	for _, copied := range []string{far, near} {
		if err := os.WriteFile(copied, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(store, link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken, []byte("no store"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		d := startIn(t, root, api.GuestSetup{CABundle: certificate(t, name)})
		if status, body := d.init(api.GuestInit{}, ""); status != 204 {
			t.Fatalf("init: %d %s", status, body)
		}
		for _, path := range []string{link, far, near} {
			if got := keytool(t, "-list", "-v", "-keystore", path); strings.Count(got, "Owner:") != 2 || !strings.Contains(got, "CN="+name) || !strings.Contains(got, "CN=base") {
				t.Errorf("in %s Java finds %s", path, got)
			}
		}
		if got, err := os.ReadFile(broken); err != nil || string(got) != "no store" {
			t.Errorf("what is no store became %q, %v", got, err)
		}
		if !strings.Contains(d.log.String(), "opt/old/lib/security/cacerts") {
			t.Errorf("nobody is told: %s", d.log)
		}
		d.stop()
	}
}

func keytool(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("keytool", append(args, "-storepass", "changeit")...).CombinedOutput()
	if err != nil {
		t.Fatalf("keytool: %v\n%s", err, out)
	}
	return string(out)
}
