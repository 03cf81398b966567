// Package cli runs transcripts of the command line, bin/moat, against a real
// server. A transcript is a text in testdata that anyone can write: commands,
// and what they shall print. Beside testscript's own commands there is
//
//	keep NAME   sets the variable NAME to what the last command printed
package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/moat-sandbox/moat/test/harness"
)

func TestTranscripts(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	programs := t.TempDir()
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal(err)
	}
	// The command line runs in the network of the node, where the server is.
	for name, program := range map[string]string{"moat": harness.Binary(t, "moat"), "curl": curl} {
		wrapper := fmt.Sprintf("#!/bin/sh\nexec nsenter --target %d --net -- %s \"$@\"\n", s.Lab.Node.PID1(), program)
		if err := os.WriteFile(filepath.Join(programs, name), []byte(wrapper), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", programs+":"+env.Getenv("PATH"))
			env.Setenv("E2B_API_URL", harness.URL)
			env.Setenv("E2B_SANDBOX_URL", harness.URL)
			env.Setenv("E2B_API_KEY", s.Key)
			env.Setenv("DATA_DIR", s.DataDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"keep": keep},
	})
}

func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keep NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}
