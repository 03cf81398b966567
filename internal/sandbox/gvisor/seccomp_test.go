//go:build amd64 && !race

package gvisor

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	sentryconfig "gvisor.dev/gvisor/runsc/boot/filter/config"
	goferconfig "gvisor.dev/gvisor/runsc/fsgofer/filter/config"
)

var update = flag.Bool("update", false, "rewrite seccomp_amd64.json")

// TestSeccompPrograms compiles the filters from gVisor's rules and compares
// them with the committed ones. Sanitizers change the rules, so it does not
// run under -race.
//
// gVisor writes the compiling process's own number into one systrap rule
// (rt_tgsigqueueinfo) although it is not declared as a variable. The sentry and
// the gofer are always the first of their PID namespace, so the compiler must
// be that too.
func TestSeccompPrograms(t *testing.T) {
	if os.Getpid() != 1 {
		cmd := exec.Command("/proc/self/exe", append(os.Args[1:], "-test.run=^TestSeccompPrograms$")...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("as first process of a PID namespace: %v\n%s", err, out)
		}
		return
	}
	want := compiledFilters{Sentry: compileSentry(t), Gofer: compileGofer(t)}
	if *update {
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("seccomp_amd64.json", append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	var got compiledFilters
	if err := json.Unmarshal(seccompPrograms, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatal("seccomp_amd64.json does not match gVisor's rules: run go generate ./internal/sandbox/gvisor")
	}
}

func compileSentry(t *testing.T) precompiledseccomp.Program {
	t.Helper()
	constructor, err := platform.Lookup(flags["platform"])
	if err != nil {
		t.Fatal(err)
	}
	infos := constructor.PrecompiledSeccompInfo()
	if len(infos) != 1 {
		t.Fatalf("platform %s has %d seccomp variants, want 1", flags["platform"], len(infos))
	}
	opt := sentryconfig.Options{Platform: infos[0]}
	names := slices.Collect(maps.Keys(opt.Vars()))
	program, err := precompiledseccomp.Precompile(opt.ConfigKey(), names, func(vars precompiledseccomp.Values) *seccomp.Program {
		opt := opt
		opt.Platform = withVariables{infos[0], vars}
		rules, denied := sentryconfig.Rules(opt)
		return &seccomp.Program{
			RuleSets: []seccomp.RuleSet{{Rules: denied.Copy()}, {Rules: rules.Copy(), Action: seccomp.Allow}},
			Options:  sentryconfig.SeccompOptions(opt),
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// withVariables lets the compiler choose the value of every variable: those of
// a platform override all others.
type withVariables struct {
	platform.SeccompInfo
	vars precompiledseccomp.Values
}

func (w withVariables) Variables() precompiledseccomp.Values { return w.vars }

func compileGofer(t *testing.T) precompiledseccomp.Program {
	t.Helper()
	programs, err := goferconfig.PrecompiledPrograms()
	if err != nil {
		t.Fatal(err)
	}
	key := goferconfig.Options{LisafsNeeded: false}.ConfigKey()
	for _, p := range programs {
		if p.Name == key {
			return p
		}
	}
	t.Fatalf("gVisor offers no compiled gofer filter %q", key)
	return precompiledseccomp.Program{}
}
