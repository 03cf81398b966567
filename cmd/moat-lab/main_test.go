package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// beLab in the environment makes the test binary behave as moat-lab.
const beLab = "LAB_TEST_BE_LAB"

func TestMain(m *testing.M) {
	if os.Getenv(beLab) != "" {
		main()
	}
	os.Exit(m.Run())
}

func moatLab(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), beLab+"=1")
	return cmd
}

func TestExitStatusIsTheCommands(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		output string
	}{
		{[]string{"--", "sh", "-c", "exit 7"}, 7, ""},
		{[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{[]string{"true"}, 0, ""},
		{[]string{"--", "no-such-command-anywhere"}, 125, "no-such-command-anywhere"},
		{[]string{"--no-such-flag"}, 125, "no-such-flag"},
		{nil, 125, "no command given"},
		{[]string{"--records", "/no/such/file", "true"}, 125, "/no/such/file"},
		{[]string{"--help"}, 0, "LAB_CA"},
		{[]string{"--", "sh", "-c", `test -s "$LAB_CA" -a -s "$LAB_KEY" && head -1 "$LAB_CERT"`}, 0, "BEGIN CERTIFICATE"},
		{[]string{"--report", "curl", "-s", "--cacert", "/run/moat-lab/ca.pem", "https://example.com/"}, 0, "this is example.com at 93.184.216.34"},
		{[]string{"--report", "curl", "-s", "http://example.com/x"}, 0, "request GET example.com/x at 93.184.216.34:80"},
	} {
		cmd := moatLab(t, c.args...)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != c.status || !strings.Contains(string(out), c.output) {
			t.Errorf("moat-lab %q: status %d, want %d with %q in the output:\n%s", c.args, got, c.status, c.output, out)
		}
	}
}

// TestNothingSurvives ends moat-lab in every way there is, while the node has
// a process that ignores all polite requests.
func TestNothingSurvives(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL} {
		cmd := moatLab(t, "--", "sh", "-c", `setsid sh -c "trap '' TERM INT; echo up; while :; do sleep 1000; done"`)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
			t.Fatalf("the command says %q, %v", line, err)
		}
		namespaces := namespacesBelow(t, cmd.Process.Pid)
		if len(namespaces) == 0 {
			t.Fatal("found no namespace of the lab; the check below would prove nothing")
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for _, ns := range namespaces {
			waitUnused(t, signal, ns)
		}
	}
}

// namespacesBelow lists the network and PID namespaces of a process's
// descendants that are not the test's own.
func namespacesBelow(t *testing.T, pid int) []string {
	t.Helper()
	script := `for p in $(pgrep -P $0); do readlink /proc/$p/ns/net /proc/$p/ns/pid; done`
	out, err := exec.Command("sh", "-c", script, strconv.Itoa(pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, ns := range strings.Fields(string(out)) {
		kind, _, _ := strings.Cut(ns, ":")
		own, err := os.Readlink(filepath.Join("/proc/self/ns", kind))
		if err != nil {
			t.Fatal(err)
		}
		if ns != own {
			found = append(found, ns)
		}
	}
	return found
}

// waitUnused waits until no process is in the namespace any more.
func waitUnused(t *testing.T, signal syscall.Signal, ns string) {
	t.Helper()
	kind, _, _ := strings.Cut(ns, ":")
	deadline := time.Now().Add(10 * time.Second)
	for {
		links, err := filepath.Glob("/proc/[0-9]*/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		users := 0
		for _, link := range links {
			if target, _ := os.Readlink(link); target == ns {
				users++
			}
		}
		if users == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s %d processes are still in %s", signal, users, ns)
		}
		<-time.After(10 * time.Millisecond)
	}
}
