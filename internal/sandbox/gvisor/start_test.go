package gvisor

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestStart(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	for name, root := range l.roots() {
		t.Run(name, func(t *testing.T) {
			_, s := startBox(t, r, root, testLimits, "serve", "--port=1")
			if got := s.must(t, request{Op: "hostname"}).Out; got != "castle" {
				t.Errorf("host name %q, want castle", got)
			}
			args := s.must(t, request{Op: "args"})
			if !strings.HasPrefix(args.Out, "[serve --port=1] [") || args.N != 1 {
				t.Errorf("arguments and environment %s as process %d", args.Out, args.N)
			}
			_, env, _ := strings.Cut(strings.Trim(args.Out, "]"), "] [")
			// gVisor adds HOME, and the order is none.
			if got := slices.Sorted(slices.Values(strings.Fields(env))); !slices.Equal(got, []string{"HELLO=world", "HOME=/root", "PATH=/usr/bin:/bin"}) {
				t.Errorf("environment %q", got)
			}
			status := s.must(t, request{Op: "read", Path: "/proc/self/status"}).Out
			for _, want := range []string{"Uid:\t0\t", "NoNewPrivs:\t0\n", "CapBnd:\t00000000a80405fb\n", "CapEff:\t00000000a80405fb\n"} {
				if !strings.Contains(status, want) {
					t.Errorf("the guest's status lacks %q:\n%s", want, status)
				}
			}
			memory := s.must(t, request{Op: "read", Path: "/proc/meminfo"}).Out
			if !strings.HasPrefix(strings.Join(strings.Fields(memory), " "), "MemTotal: 524288 kB ") {
				t.Errorf("memory inside is not the limit:\n%s", memory)
			}
			checkMounts(t, s.must(t, request{Op: "read", Path: "/proc/mounts"}).Out)
		})
	}
}

// checkMounts compares mount points, types and whether they are read-only.
func checkMounts(t *testing.T, mounts string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		mode, _, _ := strings.Cut(f[3], ",")
		got = append(got, f[1]+" "+f[2]+" "+mode)
	}
	slices.Sort(got)
	want := []string{
		"/ overlay rw", "/.moat erofs ro", "/dev dev rw", "/dev/pts devpts rw",
		"/dev/shm tmpfs rw", "/proc proc rw", "/sys sysfs ro",
	}
	if !slices.Equal(got, want) {
		t.Errorf("mounts %q, want %q", got, want)
	}
}

// TestNothingOfHost looks for what must not be seen from inside.
func TestNothingOfHost(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	_, s := startBox(t, r, l.host, testLimits)
	entries := strings.Fields(s.must(t, request{Op: "list", Path: "/"}).Out)
	want := []string{".moat", "bin", "dev", "etc", "home", "lib", "lib64", "proc", "root", "sbin", "sys", "tmp", "usr", "var"}
	if !slices.Equal(entries, want) {
		t.Errorf("root holds %q, want %q", entries, want)
	}
	if got := s.must(t, request{Op: "list", Path: "/root"}); got.N != 0 {
		t.Errorf("/root holds %s", got.Out)
	}
	if got := s.must(t, request{Op: "list", Path: "/proc"}); strings.Contains(got.Out, " 3 ") {
		t.Errorf("processes of others: %s", got.Out)
	}
	product, err := s.ask(5e9, request{Op: "read", Path: "/sys/devices/virtual/dmi/id/product_name"})
	if err != nil || strings.TrimSpace(product.Out) != "gVisor" {
		t.Errorf("product name %+v, %v; want gVisor", product, err)
	}
}

// TestRootIsShared checks that writes stay in the box, that the mount below the
// directory belongs to the root, and that users and set-user-id work in it.
func TestRootIsShared(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	_, s := startBox(t, r, l.host, testLimits)
	_, other := startBox(t, r, l.host, testLimits)
	run := func(uid int, script string) string {
		t.Helper()
		return strings.TrimSpace(s.must(t, request{Op: "run", N: uid, Args: []string{"/bin/sh", "-c", script}}).Out)
	}
	run(0, "echo changed > /usr/bin/env; rm -rf /usr/local; echo new > /etc/new; cp /usr/bin/id /tmp/id; chmod 4755 /tmp/id")
	if _, err := os.Stat("/usr/local"); err != nil {
		t.Error(err)
	}
	if got := other.must(t, request{Op: "run", Args: []string{"/usr/bin/env", "true"}}); got.Out != "" {
		t.Errorf("another box sees a change: %s", got.Out)
	}
	if got := run(1000, "id -u; /tmp/id -u; cat /etc/secret 2>&1; mv /tmp/id /var/tmp/ 2>&1 || true; touch /tmp/mine && rm /tmp/mine && echo ok"); !strings.HasPrefix(got, "1000\n0\ncat: /etc/secret: Permission denied\n") || !strings.HasSuffix(got, "\nok") {
		t.Errorf("as user 1000:\n%s", got)
	}
}

// TestNoForgery checks the first line of defence against forged packets; the
// second is outside the box.
func TestNoForgery(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	_, s := startBox(t, r, l.image, testLimits)
	for name, family := range map[string]int{"raw IPv4": unix.AF_INET, "raw IPv6": unix.AF_INET6, "packet": unix.AF_PACKET} {
		if got, err := s.ask(5e9, request{Op: "socket", N: family}); err != nil || got.Err != "operation not permitted" {
			t.Errorf("%s socket: %+v, %v; want operation not permitted", name, got, err)
		}
	}
}

// TestProcesses looks at a box's processes from the host.
func TestProcesses(t *testing.T) {
	t.Setenv("MOAT_TEST_SECRET", "hush")
	// A file that this process forgot to mark as its own.
	stray, err := unix.MemfdCreate("moat-stray", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	l, r := newLab(t), newRuntime(t)
	made, s := startBox(t, r, l.host, testLimits)
	s.must(t, request{Op: "ping"})
	b := made.(*box)
	for _, p := range []struct {
		name string
		*process
		status []string
	}{
		{"sentry", b.sentry, []string{"Uid:\t65534\t65534\t65534\t65534\n", "CapBnd:\t0000000000000000\n", "CapEff:\t0000000000000000\n"}},
		{"gofer", b.gofer, []string{"CapEff:\t000000000004001f\n"}}, // files and chroot
	} {
		status := read(t, p.PID, "status")
		for _, want := range append(p.status, "NoNewPrivs:\t1\n", "Seccomp:\t2\n") {
			if !strings.Contains(status, want) {
				t.Errorf("the %s's status lacks %q:\n%s", p.name, want, status)
			}
		}
		if env := read(t, p.PID, "environ"); strings.Contains(env, "hush") {
			t.Errorf("the %s has the server's environment: %q", p.name, env)
		}
		if files := filesOf(t, p.PID); strings.Contains(files, "moat-stray") {
			t.Errorf("the %s has inherited a file: %s", p.name, files)
		}
		if got := read(t, p.PID, "oom_score_adj"); got != oomScore+"\n" {
			t.Errorf("the %s's OOM score is %q", p.name, got)
		}
	}
	root, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", b.sentry.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range root {
		if e.Name() != "etc" && e.Name() != "proc" {
			t.Errorf("the sentry's root holds %s", e.Name())
		}
	}
}

// filesOf lists what a process has open.
func filesOf(t *testing.T, pid int) string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		if name, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			files = append(files, name)
		}
	}
	return strings.Join(files, " ")
}

// TestBoxesApart: boxes made at the same time share no socket, in particular
// none that leads into another's network or to another's sentry.
func TestBoxesApart(t *testing.T) {
	l, r := newLab(t), newRuntime(t)
	var boxes [4]*box
	var all sync.WaitGroup
	for i := range boxes {
		s := newSlot(t)
		all.Go(func() {
			b, err := r.Prepare(t.Context(), sandbox.NewBoxID(), s.path(), testLimits)
			if err != nil {
				t.Error(err)
				return
			}
			boxes[i] = b.(*box)
			if err := b.Start(t.Context(), l.startSpec(l.host, testLimits)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	owner := map[string]string{}
	for _, b := range boxes {
		if b == nil {
			continue
		}
		for _, p := range []*process{b.sentry, b.gofer} {
			for file := range strings.FieldsSeq(filesOf(t, p.PID)) {
				if !strings.HasPrefix(file, "socket:") {
					continue
				}
				if other, taken := owner[file]; taken && other != b.id {
					t.Errorf("%s is open in boxes %s and %s", file, other, b.id)
				}
				owner[file] = b.id
			}
		}
	}
	if len(owner) < 3*len(boxes) {
		t.Errorf("only %d sockets found: the test looks at the wrong thing", len(owner))
	}
	for _, b := range boxes {
		if b != nil {
			if err := b.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

func read(t *testing.T, pid int, file string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
