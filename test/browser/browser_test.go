// Package browser drives a real Chromium through public URLs: links, cookies,
// pages of neighbours that try to use them, and the error pages.
package browser

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/moat-sandbox/moat/internal/ingress/cert"
)

// TestInBrowser runs flow.mjs: without TLS, and over TLS with an authority that
// the browser was told to trust, where browsers take sandboxes for different
// sites and where they take all for one. Set SHOTS to a directory to have
// screenshots of every page put there.
func TestInBrowser(t *testing.T) {
	if _, err := os.Stat("node_modules"); errors.Is(err, fs.ErrNotExist) {
		t.Fatal("playwright-core is not installed: run 'npm ci' in test/browser")
	}
	for _, x := range []struct{ scheme, domain string }{{"http", "localhost"}, {"https", "localhost"}, {"https", "moat.test"}} {
		t.Run(x.scheme+" "+x.domain, func(t *testing.T) {
			authority, err := cert.OpenAuthority(t.TempDir(), x.domain)
			if err != nil {
				t.Fatal(err)
			}
			s := newStage(t, x.domain, authority)
			env, err := json.Marshal(s.setting(x.scheme))
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "node", "--test-reporter=spec", "flow.mjs")
			cmd.Env = slices.Concat(os.Environ(), []string{"SETTING=" + string(env), "HOME=" + trustingHome(t, authority)})
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
			s.checkRecords(t)
		})
	}
}

// trustingHome is a home directory whose browsers trust an authority.
func trustingHome(t *testing.T, authority *cert.Authority) string {
	t.Helper()
	home := t.TempDir()
	trustIn(t, home, authority.PEM())
	return home
}
