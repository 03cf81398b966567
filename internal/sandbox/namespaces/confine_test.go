package namespaces

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestAttacksFail(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	_, s := l.start(dirRoot(), testLimits)
	for _, what := range []string{
		"mount", "remount", "unshare", "unshare net", "mknod", "packet socket", "raw socket", "vsock", "crypto socket", "keyring", "module",
		"clock", "reboot", "bpf", "userfaultfd", "io_uring", "open by handle", "link down", "setns", "clone with namespaces",
		"/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper",
		"change the guest", "/proc/kcore", "/dev/sda", "/dev/mem", "/dev/kmsg",
	} {
		r, err := s.ask(request{Op: "attack", Args: []string{what}})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if r.Err == "" {
			t.Errorf("%s: it worked", what)
		}
	}
}

func TestWhatABoxSees(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, s := l.start(dirRoot(), testLimits)
	if r, err := s.ask(request{Op: "run", Args: []string{"/bin/cat", secret}}); err != nil || r.Err == "" {
		t.Errorf("a file of the host: %+v, %v", r, err)
	}
	processes := s.must(t, request{Op: "run", Args: []string{"/bin/sh", "-c", "cd /proc && echo [0-9]*"}})
	if strings.Fields(processes)[0] != "1" || len(strings.Fields(processes)) > 3 {
		t.Errorf("processes %s", processes)
	}
	if links := s.must(t, request{Op: "run", Args: []string{"/bin/ls", "/sys/class/net"}}); links != "lo\n" {
		t.Errorf("network devices %s", links)
	}
	if top := s.must(t, request{Op: "run", Args: []string{"/bin/ls", "/"}}); strings.Contains(top, "root") || !strings.Contains(top, "usr") {
		t.Errorf("root directory %s", top)
	}
	// Writing below a mount of the template stays in the box as well.
	s.must(t, request{Op: "run", Args: []string{"/bin/sh", "-c", "echo mine > /usr/moat-test && cat /usr/moat-test"}})
	if _, err := os.Stat("/usr/moat-test"); !os.IsNotExist(err) {
		t.Errorf("a box wrote to the host: %v", err)
	}
	caps := s.must(t, request{Op: "run", Args: []string{"/bin/grep", "CapBnd", "/proc/self/status"}})
	if strings.TrimSpace(caps) != "CapBnd:\t00000000a00405fb" {
		t.Errorf("capabilities %s", caps)
	}
}

// TestHiddenMountsStayHidden: what is mounted inside a template's mount must
// not vanish with the overlay and show what it covers.
func TestHiddenMountsStayHidden(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	root := filepath.Join(t.TempDir(), "root")
	usr := filepath.Join(root, "usr")
	covered := filepath.Join(usr, "share")
	if err := os.MkdirAll(usr, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unmountBelow(root); err != nil {
			t.Error(err)
		}
	})
	if err := showUsr(usr); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("moat-test", covered, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	_, s := l.start(sandbox.Root{Dir: root}, testLimits)
	inside := strings.TrimPrefix(covered, root)
	if got := s.must(t, request{Op: "run", Args: []string{"/bin/ls", inside}}); got != "" {
		t.Errorf("%s shows %s", inside, got)
	}
}
