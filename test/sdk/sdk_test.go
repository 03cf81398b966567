// Package sdk drives the server with E2B's published SDKs, unchanged.
package sdk

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// suites are the test files, each about one SDK.
var suites = []string{"e2b.test.mjs", "e2b-2-45.test.mjs", "code-interpreter.test.mjs"}

// TestByDomain is how E2B's SDKs are meant to be used: a domain and a key say
// everything, all traffic goes by name and over TLS.
func TestByDomain(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			run(t, s, suite, "E2B_DOMAIN="+lab.Domain, "NODE_EXTRA_CA_CERTS="+harness.CAFile)
		})
	}
}

// TestByURL needs neither names nor certificates but for public URLs.
func TestByURL(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			run(t, s, suite, "E2B_API_URL="+harness.URL, "E2B_SANDBOX_URL="+harness.URL, "MOAT_TEST_SCHEME=http")
		})
	}
}

// run runs one test file on the node.
func run(t *testing.T, s *harness.Server, suite string, env ...string) {
	t.Helper()
	if _, err := os.Stat("node_modules"); errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the SDKs are not installed: run 'npm ci' in test/sdk, as 'make test' does")
	}
	cmd := s.Lab.Node.Command(t.Context(), "node", "--test-reporter=spec", suite)
	cmd.Env = slices.Concat(harness.CleanEnv(), []string{"E2B_API_KEY=" + s.Key}, env)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", suite, err, out)
	} else {
		t.Logf("%s", out)
	}
}
