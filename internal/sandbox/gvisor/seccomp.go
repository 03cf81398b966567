package gvisor

import (
	"encoding/json"
	"fmt"

	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	sentryfilter "gvisor.dev/gvisor/runsc/boot/filter"
	goferfilter "gvisor.dev/gvisor/runsc/fsgofer/filter"
)

// gVisor compiles its seccomp filters from rules at every start, which takes
// longer than anything else in booting a box. Its build system can compile
// them ahead; the Go module has that switched off but still looks for a
// compiled program by a key that names every option the rules depend on. The
// programs for our options are in seccompPrograms. A key that is not there is
// compiled at start as before: slower, never weaker. A program that does not
// match gVisor's rules would be a wrong filter, so a test compiles them anew
// and compares; run "go generate" after every update of gVisor.
//
//go:generate go test -count=1 -run ^TestSeccompPrograms$ -update .

//go:linkname sentryPrograms gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var sentryPrograms map[string]precompiledseccomp.Program

//go:linkname goferPrograms gvisor.dev/gvisor/runsc/fsgofer/filter.precompiledPrograms
var goferPrograms map[string]precompiledseccomp.Program

// compiledFilters are the seccomp programs of one architecture.
type compiledFilters struct {
	Sentry precompiledseccomp.Program `json:"sentry"`
	Gofer  precompiledseccomp.Program `json:"gofer"`
}

// registerSeccomp hands gVisor the compiled filters of this architecture, if
// there are any. It runs in gVisor's processes only.
func registerSeccomp() error {
	if len(seccompPrograms) == 0 {
		return nil
	}
	var c compiledFilters
	if err := json.Unmarshal(seccompPrograms, &c); err != nil {
		return fmt.Errorf("decode seccomp programs: %w", err)
	}
	// Listing makes the maps, once, before anything is put into them.
	sentryfilter.ListPrecompiled()
	goferfilter.ListPrecompiled()
	sentryPrograms[c.Sentry.Name] = c.Sentry
	goferPrograms[c.Gofer.Name] = c.Gofer
	return nil
}
