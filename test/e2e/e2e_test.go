// Package e2e looks at a running server from outside: as a client, as a
// sandbox, as the internet and as the machine. Every test has a laboratory and
// a server of its own.
package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// proberFile is the built program of ./prober.
var proberFile string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "moat-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	proberFile = filepath.Join(dir, "prober")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", proberFile, "./prober")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	status := 1
	if err := build.Run(); err == nil {
		status = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// prober is where it lies in a sandbox.
const prober = "/home/user/prober"

// withProber makes a sandbox that has the prober in it.
func withProber(t *testing.T, s *harness.Server, spec api.NewSandbox) *harness.Box {
	t.Helper()
	box := s.Create(t, spec)
	box.Upload(t, proberFile, prober)
	return box
}

// outcome is what the prober says about one target.
type outcome struct {
	Probe, Result, Detail string
	Millis                int64
}

// probe asks the prober about all targets at once.
func probe(t *testing.T, box *harness.Box, targets ...string) map[string]outcome {
	t.Helper()
	return outcomes(t, box.MustRun(t, prober+" probe "+strings.Join(targets, " ")))
}

func outcomes(t *testing.T, text string) map[string]outcome {
	t.Helper()
	found := make(map[string]outcome)
	for line := range strings.Lines(text) {
		var o outcome
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("the prober says %q: %v", line, err)
		}
		found[o.Probe] = o
	}
	return found
}

// network is a network document for create.
func network(allow, deny []string) *api.Network { return &api.Network{AllowOut: allow, DenyOut: deny} }

var everything = []string{"0.0.0.0/0"}

// copyPrograms makes a root filesystem in dir that has a shell.
func copyPrograms(t *testing.T, dir string) {
	t.Helper()
	script := `set -e
for dir in bin etc home tmp; do mkdir -p "$1/$dir"; done
for lib in $(ldd /bin/sh | grep -o '/[^ )]*'); do mkdir -p "$1${lib%/*}" && cp -L "$lib" "$1$lib"; done
cp -L /bin/sh "$1/bin/sh"`
	if out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("make a root filesystem: %v\n%s", err, out)
	}
}

// runSh runs a command line in a sandbox that has no more than a shell.
func runSh(t *testing.T, box *harness.Box, line string) string {
	t.Helper()
	var out strings.Builder
	exit, err := box.Commands.Run(t.Context(), client.Command{Args: []string{"/bin/sh", "-c", line}, Stdout: &out, Stderr: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%q: %+v, %v\n%s", line, exit, err, out.String())
	}
	return out.String()
}
