package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// secretPlaces are directories of the host that hold what nobody else may see.
// The test covers them with file systems of its own, on the node only.
var secretPlaces = []string{"/root", "/home", "/var/lib", "/srv", "/opt", "/mnt", "/boot"}

// TestNothingOfTheHostIsVisible plants a canary in every place where hosts keep
// secrets and looks for it as root inside a sandbox.
func TestNothingOfTheHostIsVisible(t *testing.T) {
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	canary := "canary-" + hex.EncodeToString(raw)
	s := harness.New(t, harness.Options{})
	for _, dir := range append(secretPlaces, "/etc/ssl/private") {
		script := fmt.Sprintf("mkdir -p %[1]s && mount -t tmpfs canary %[1]s && mkdir -p %[1]s/.ssh && echo %[2]s > %[1]s/.ssh/%[2]s", dir, canary)
		if out, err := s.Lab.Node.Command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("plant a canary in %s: %v %s", dir, err, out)
		}
	}
	if err := s.Lab.Node.WriteFile("/run/"+canary, []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("A_HOST_VARIABLE", canary)
	s.Start()
	box := s.Create(t, api.NewSandbox{})

	if r := box.RunAs(t, "root", "id -u; ls /etc > /dev/null && echo look"); r.Stdout != "0\nlook\n" {
		t.Fatalf("root inside cannot look around: %+v", r)
	}
	for what, line := range map[string]string{
		"a file of that name":          "find / -name '*" + canary + "*' -not -path '/proc/*' 2>/dev/null",
		"a file with that content":     "grep -rls " + canary + " /etc /root /home /var /srv /opt /run /tmp /mnt /boot 2>/dev/null | grep -v ^/tmp/own",
		"an environment with it":       "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep " + canary,
		"a process of the host":        "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -e '[m]oat serve' -e '[r]unsc'",
		"a mount that names the host":  "cat /proc/mounts | grep -e " + s.DataDir + " -e canary",
		"keys of the host":             "ls /etc/ssh/ssh_host_* /etc/ssl/private/* /etc/machine-id 2>/dev/null | grep -v /etc/machine-id",
		"something in another's home":  "ls -A /root /home | grep -v -e '^/' -e '^user$' -e '^$' -e bash -e profile",
		"the server's data directory":  "ls " + s.DataDir + " 2>/dev/null",
		"a block device of the host":   "find /dev -type b 2>/dev/null",
		"the key that the server made": "grep -rls " + strings.TrimPrefix(s.Key, "e2b_") + " /etc /root /home /var /run 2>/dev/null",
	} {
		if r := box.RunAs(t, "root", line); r.Stdout != "" {
			t.Errorf("root inside sees %s: %q", what, r.Stdout)
		}
	}
	expectOwnAccounts(t, box)
}

// expectOwnAccounts compares the sandbox's accounts with the host's.
func expectOwnAccounts(t *testing.T, box *harness.Box) {
	t.Helper()
	shadow, err := os.ReadFile("/etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	inside := box.RunAs(t, "root", "cat /etc/shadow 2>/dev/null").Stdout
	for line := range strings.Lines(string(shadow)) {
		if fields := strings.Split(line, ":"); len(fields) > 1 && len(fields[1]) > 3 && strings.Contains(inside, fields[1]) {
			t.Errorf("the password hash of the host's %s is visible inside", fields[0])
		}
	}
	if got := box.MustRun(t, "id -un; id -u; pwd; hostname"); !strings.HasPrefix(got, "user\n1000\n/home/user\n") {
		t.Errorf("the ordinary user is %q", got)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := box.MustRun(t, "hostname"); got == name {
		t.Errorf("the sandbox has the host's name %q", name)
	}
}

// TestBaseIsUsable looks for what E2B's documentation takes for granted.
func TestBaseIsUsable(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{})
	for _, c := range []struct{ line, want string }{
		{"python -c 'print(6*7)'", "42"},
		{"python3 -c 'print(6*7)'", "42"},
		{"sudo id -un", "root"},
		{"sudo sh -c 'echo x > /etc/own && cat /etc/own'", "x"},
		{"echo $HOME $USER; cd ~ && pwd", "/home/user user\n/home/user"},
		{"touch /tmp/a && mkdir -p ~/b/c && echo ok", "ok"},
		{"curl -s http://example.com/ip | grep -o '\"host\":\"[^\"]*\"'", `"host":"example.com"`},
		{"curl -s -o /dev/null -w '%{http_code}' https://example.com/", "200"},
		{"test -w /usr && echo writable || echo not writable", "not writable"},
		{"cat /proc/sys/kernel/osrelease | grep -c .", "1"},
	} {
		if got := box.MustRun(t, c.line); got != c.want {
			t.Errorf("%s: %q, want %q", c.line, got, c.want)
		}
	}
	// What one sandbox writes no other sees.
	box.MustRun(t, "echo mine > /tmp/mine; sudo sh -c 'echo mine > /etc/mine'")
	other := s.Create(t, api.NewSandbox{})
	if got := other.MustRun(t, "cat /tmp/mine /etc/mine 2>/dev/null || echo nothing"); got != "nothing" {
		t.Errorf("the next sandbox reads %q", got)
	}
}

// TestLimitsHold uses up what sandboxes have: processes, disk and memory. The
// first two live in memory too, so that either the limit itself says no or the
// whole sandbox ends for want of memory. Its neighbour goes on in any case.
func TestLimitsHold(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	modest := s.Create(t, api.NewSandbox{})
	detail, err := s.Client().Sandbox(t.Context(), modest.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, line, refusal string }{
		{"more processes than it may have", "for i in $(seq 1100); do sleep 60 & done", "Resource temporarily unavailable"},
		{
			"more than the disk and the memory",
			fmt.Sprintf("dd if=/dev/zero of=/tmp/big bs=1M count=%d", detail.DiskSizeMB+detail.MemoryMB), "No space left",
		},
		{
			"more memory than memory and disk together",
			fmt.Sprintf(`python3 -c 'b = bytearray(%d << 20); [0 for i in range(0, len(b), 4096) if b.__setitem__(i, 1)]'`, detail.MemoryMB+detail.DiskSizeMB+128), "MemoryError",
		},
	} {
		greedy := s.Create(t, api.NewSandbox{})
		out := new(strings.Builder)
		_, err := greedy.Commands.Run(t.Context(), client.Command{Args: []string{"bash", "-c", c.line}, Stdout: out, Stderr: out})
		switch {
		case strings.Contains(out.String(), c.refusal):
			t.Logf("%s: refused", c.what)
		case err == nil:
			t.Errorf("a sandbox of %d MiB memory and %d MiB disk got %s", detail.MemoryMB, detail.DiskSizeMB, c.what)
		default:
			t.Logf("%s: %v", c.what, err)
			s.Wait("the greedy sandbox is gone", func() bool {
				_, err := s.Client().Sandbox(t.Context(), greedy.ID)
				return harness.Status(err) == 404
			})
		}
		if got := modest.MustRun(t, "echo alive"); got != "alive" {
			t.Errorf("after %s its neighbour says %q", c.what, got)
		}
	}
	expectAlive(t, s, modest)
}
