package main

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/moat-sandbox/moat/internal/audit"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"moat": main})
}

// TestTranscripts runs the scripts in testdata. Each has a server of its own,
// whose operator's socket is where moat looks for it; $URL and $KEY are the
// same server for everybody else.
func TestTranscripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			server := startServer(script{env}, env.WorkDir)
			env.Setenv("MOAT_DATA_DIR", server.dataDir)
			env.Setenv("URL", server.url)
			env.Setenv("KEY", server.key)
			env.Values[serverValue{}] = server
			return nil
		},
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"code": code, "keep": keep, "flow": flow},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// script ends a server with the script that it is for.
type script struct{ env *testscript.Env }

func (s script) Cleanup(f func())  { s.env.Defer(f) }
func (s script) Fatal(args ...any) { s.env.T().Fatal(args...) }

// code N COMMAND ARG... runs a command that must exit with N.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command [arg...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// serverValue is under what a script knows its server.
type serverValue struct{}

// flow ID VERDICT ADDRESS:PORT [NAME] records what a sandbox did.
func flow(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || len(args) > 4 {
		ts.Fatalf("usage: flow id verdict address:port [name]")
	}
	r := audit.Record{
		Sandbox: args[0], Time: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), Protocol: audit.TCP,
		Duration: 1500 * time.Millisecond, BytesUp: 517, BytesDown: 123_456, Reason: "because of " + args[2],
	}
	ts.Check(r.Verdict.UnmarshalText([]byte(args[1])))
	dst, err := netip.ParseAddrPort(args[2])
	ts.Check(err)
	r.Dst = dst
	if len(args) == 4 {
		r.Name, r.Protocol = args[3], audit.TLS
	}
	ts.Value(serverValue{}).(*testServer).flows.Append(r)
}

// keep NAME puts the last command's output, without its newline, into $NAME.
func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keep NAME")
	}
	output := ts.ReadFile("stdout")
	for len(output) > 0 && output[len(output)-1] == '\n' {
		output = output[:len(output)-1]
	}
	ts.Setenv(args[0], output)
}

// moat prepares a run of the command line as a process of its own.
func moat(t *testing.T, server *testServer, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &exec.Cmd{
		Path: self,
		Args: append([]string{filepath.Join("bin", "moat")}, args...),
		Env:  []string{"MOAT_DATA_DIR=" + server.dataDir, "PATH=" + os.Getenv("PATH"), "TERM=xterm"},
	}
}
