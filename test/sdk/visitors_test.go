package sdk

import (
	"testing"

	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// TestVisitors is about public URLs that are private when they should be.
func TestVisitors(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	for _, suite := range []string{"e2b.visitors.test.mjs", "e2b-2-45.visitors.test.mjs", "code-interpreter.visitors.test.mjs"} {
		t.Run(suite, func(t *testing.T) {
			run(t, s, suite, "E2B_DOMAIN="+lab.Domain, "NODE_EXTRA_CA_CERTS="+harness.CAFile)
		})
	}
}
