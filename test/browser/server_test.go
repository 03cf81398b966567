package browser

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// TestLinkOfServer is the whole way: a real server and a private sandbox, whose
// app a browser opens by a link that the API made. server.mjs does it.
func TestLinkOfServer(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{
		Network: &api.Network{AllowPublicTraffic: new(bool)}, Timeout: harness.Seconds(10 * time.Minute),
	})
	const prober = "/home/user/prober"
	box.Upload(t, harness.Build(t, "./test/e2e/prober"), prober)
	box.Start(t, prober+" serve 8080")

	home := filepath.Join(t.TempDir(), "home")
	trustIn(t, home, s.Lab.CA())
	setting, err := json.Marshal(map[string]any{"domain": lab.Domain, "key": s.Key, "id": box.ID, "port": 8080})
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.Lab.Node.Command(t.Context(), "node", "--test-reporter=spec", "server.mjs")
	cmd.Env = slices.Concat(harness.CleanEnv(), []string{
		"SETTING=" + string(setting), "HOME=" + home, "NODE_EXTRA_CA_CERTS=" + harness.CAFile,
	})
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// trustIn makes a home directory whose browsers trust an authority.
func trustIn(t *testing.T, home string, authority []byte) {
	t.Helper()
	pem, db := filepath.Join(home, "ca.pem"), filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pem, authority, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-N", "--empty-password", "-d", "sql:" + db},
		{"-A", "-d", "sql:" + db, "-n", "moat", "-t", "C,,", "-i", pem},
	} {
		if out, err := exec.CommandContext(t.Context(), "certutil", args...).CombinedOutput(); err != nil {
			t.Fatalf("certutil, of Debian's libnss3-tools: %v\n%s", err, out)
		}
	}
}
