package sdk

import (
	"testing"

	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// TestEgress is about policies, and about traffic under them.
func TestEgress(t *testing.T) {
	s := harness.Start(t, harness.Options{Lab: lab.Config{Records: `
mydomain.com.   60 IN A 93.184.216.34
*.mydomain.com. 60 IN A 93.184.216.35
`}})
	for _, suite := range []string{"e2b.egress.test.mjs", "e2b-2-45.egress.test.mjs", "code-interpreter.egress.test.mjs"} {
		t.Run(suite, func(t *testing.T) {
			run(t, s, suite, "E2B_DOMAIN="+lab.Domain, "NODE_EXTRA_CA_CERTS="+harness.CAFile)
		})
	}
}
