package base

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNothingSecretIsShown(t *testing.T) {
	root := host(t, map[string]string{
		// Not of /usr at all.
		"root/.ssh/id_ed25519": keyFile, "home/jo/.bashrc": marker, "var/lib/db": marker, "etc/shadow": marker,
		"etc/npmrc": marker, "etc/pip.conf": marker, "etc/gitconfig": marker, "etc/environment": marker,
		"etc/profile.d/token.sh": marker, "etc/machine-id": marker, "etc/hosts": marker, "etc/resolv.conf": marker,
		"etc/sudoers": marker, "etc/passwd": marker, "opt/x": marker, "srv/x": marker, "tmp/x": marker, "run/x": marker,
		// In directories of /etc that are copied.
		"etc/ssl/private/host.key": keyFile, "etc/ssl/certs/with-key.pem": keyFile,
		"etc/ssl/certs/out.pem": "->../private/host.key", "etc/fonts/.npmrc": marker,
		"etc/java-17/jmx.password": marker, "etc/java-17/private/x": marker, "etc/alternatives/home": "->/home/jo/.bashrc",
		// Below /usr.
		"usr/etc/npmrc": marker, "usr/local/etc/conf": marker, "usr/local/etc/deep/er": marker, "usr/local/var/db": marker,
		"usr/share/secret": marker, "usr/share/group-only": marker, "usr/lib/closed/x": marker, "usr/lib/search-only/x": marker,
		"usr/local/bin/deploy": "#!/bin/sh\n" + marker, "usr/local/bin/run-only": "#!/bin/sh\n" + marker,
		"usr/lib/app/server.pem": keyFile, "usr/lib/app/server.key": keyFile, "usr/lib/app/id_rsa": keyFile, "usr/lib/app/store.p12": marker,
		"usr/lib/node_modules/x/.npmrc": marker, "usr/share/.aws/credentials": marker, "usr/home/jo/x": marker,
		"usr/local/share/.env": marker,
	})
	for name, mode := range map[string]fs.FileMode{
		"etc/java-17/jmx.password": 0o600, "etc/java-17/private": 0o700,
		"usr/share/secret": 0o600, "usr/share/group-only": 0o640, "usr/lib/closed": 0o700, "usr/lib/search-only": 0o711,
		"usr/local/bin/deploy": 0o700, "usr/local/bin/run-only": 0o711,
	} {
		chmod(t, root, name, mode)
	}
	if got := leaks(t, root); len(got) < 35 {
		t.Fatalf("the made-up host has only %d secrets: the test would prove little", len(got))
	}
	b, made := ensure(t, filepath.Join(t.TempDir(), "base"), root)
	if got := leaks(t, b.Root()); len(got) != 0 {
		t.Errorf("visible in the template: %q", got)
	}
	if len(made.Hidden) != 17 {
		t.Errorf("%d things hidden, want 17: %v", len(made.Hidden), made.Hidden)
	}
	for _, empty := range []string{"root", "var/lib", "opt/moat/lib", "srv", "tmp", "etc/profile.d"} {
		if entries, err := os.ReadDir(filepath.Join(b.Root(), empty)); len(entries) != 0 {
			t.Errorf("/%s holds %v (%v)", empty, entries, err)
		}
	}
}

// TestMountsBelowUsr: neither what is mounted below the host's /usr is shown,
// nor what lies under it.
func TestMountsBelowUsr(t *testing.T) {
	root := host(t, map[string]string{"usr/lib/covered dir/under": marker, "usr/bin/covered": marker, "tmp/file": marker})
	for name, source := range map[string]string{"usr/lib/covered dir": "", "usr/bin/covered": "tmp/file"} {
		target := filepath.Join(root, name)
		var err error
		if source == "" {
			err = unix.Mount("moat-test", target, "tmpfs", 0, "size=64k")
		} else {
			err = unix.Mount(filepath.Join(root, source), target, "", unix.MS_BIND, "")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, 0); err != nil {
				t.Error(err)
			}
		})
	}
	write(t, root, "usr/lib/covered dir/mounted", marker)
	b, made := ensure(t, filepath.Join(t.TempDir(), "base"), root)
	if got := leaks(t, b.Root()); len(got) != 0 || len(made.Hidden) != 2 {
		t.Errorf("visible in the template: %q; hidden: %v", got, made.Hidden)
	}
}

func TestWhatMustBeShownIs(t *testing.T) {
	root := host(t, map[string]string{
		"usr/bin/sudo": "\x7fELF program", "usr/lib/key.pem": "-----BEGIN CERTIFICATE-----", "usr/local/lib/app/data": "data",
		"etc/alternatives/vi": "->/usr/bin/vim", "etc/alternatives/nc": "->/bin/nc", "etc/ld.so.cache": "cache",
		"etc/ssl/certs/ab12.0": "->One.pem", "etc/ssl/certs/One.pem": "->/usr/share/ca/One.crt", "usr/share/ca/One.crt": "cert",
		"etc/java-17/security/java.security": "conf", "etc/localtime": "->/usr/share/zoneinfo/UTC",
		"usr/etc/x": marker, "usr/local/etc/x": marker,
	})
	chmod(t, root, "usr/bin/sudo", fs.ModeSetuid|0o111)
	b, made := ensure(t, filepath.Join(t.TempDir(), "base"), root)
	if !made.Trust {
		t.Error("certificate bundle not found")
	}
	for name, want := range map[string]string{
		"usr/bin/sudo": "\x7fELF program", "usr/lib/key.pem": "-----BEGIN CERTIFICATE-----", "usr/local/lib/app/data": "data",
		"etc/ld.so.cache": "cache", "etc/java-17/security/java.security": "conf", "usr/share/ca/One.crt": "cert",
		"etc/ssl/certs/ca-certificates.crt": "-----BEGIN CERTIFICATE-----\n", "bin/sh": "#!", "etc/fstab": "",
	} {
		if got, err := os.ReadFile(filepath.Join(b.Root(), name)); err != nil || string(got) != want {
			t.Errorf("/%s: %q, %v; want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]string{
		"etc/alternatives/vi": "/usr/bin/vim", "etc/alternatives/nc": "/bin/nc", "etc/ssl/certs/ab12.0": "One.pem",
		"etc/ssl/certs/One.pem": "/usr/share/ca/One.crt", "etc/localtime": "/usr/share/zoneinfo/UTC",
		"opt/moat/bin/python": "/usr/bin/python3", "bin": "usr/bin", "var/run": "/run",
		"etc/pki/tls/certs/ca-bundle.crt": "/etc/ssl/certs/ca-certificates.crt",
	} {
		if got, err := os.Readlink(filepath.Join(b.Root(), name)); err != nil || got != want {
			t.Errorf("/%s -> %q, %v; want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]fs.FileMode{
		"usr/bin/sudo": fs.ModeSetuid | 0o111, "tmp": fs.ModeDir | fs.ModeSticky | 0o777, "root": fs.ModeDir | 0o700,
		"etc/shadow": 0o640, "etc/sudoers": 0o440, "usr/local": fs.ModeDir | 0o755, ".": fs.ModeDir | 0o755,
	} {
		if info, err := os.Lstat(filepath.Join(b.Root(), name)); err != nil || info.Mode() != want {
			t.Errorf("/%s: %v, %v; want %v", name, info, err, want)
		}
	}
	info, err := os.Lstat(filepath.Join(b.Root(), "home/user/.bashrc"))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 1000 {
		t.Errorf("home of user: %v, %v", info, err)
	}
}

func TestNothingCanBeWritten(t *testing.T) {
	root := host(t, nil)
	b, _ := ensure(t, filepath.Join(t.TempDir(), "base"), root)
	err := os.WriteFile(filepath.Join(b.Root(), "usr/bin/sh"), []byte("mine"), 0o755)
	if err == nil {
		t.Error("the host's /usr can be written through the template")
	}
	if data, _ := os.ReadFile(filepath.Join(root, "usr/bin/sh")); string(data) != "#!" {
		t.Errorf("the host's program became %q", data)
	}
}

// TestWithoutSudoNoSudoers: nothing pretends that a program is there.
func TestWithoutSudoNoSudoers(t *testing.T) {
	b, _ := ensure(t, filepath.Join(t.TempDir(), "base"), host(t, nil))
	if _, err := os.Lstat(filepath.Join(b.Root(), "etc/sudoers")); !os.IsNotExist(err) {
		t.Errorf("sudoers without sudo: %v", err)
	}
}

func TestEnsureAgain(t *testing.T) {
	root := host(t, map[string]string{"etc/services": "one"})
	dir := filepath.Join(t.TempDir(), "a,b:c\\d", "base")
	first, _ := ensure(t, dir, root)
	inode := inodeOf(t, filepath.Join(first.Root(), "etc/passwd"))

	// A restarted server finds everything right and changes nothing.
	again, made := ensure(t, dir, root)
	if made.Files != 0 || inodeOf(t, filepath.Join(again.Root(), "etc/passwd")) != inode {
		t.Errorf("%d files changed though nothing had", made.Files)
	}

	// The host changed, and somebody changed what is ours.
	write(t, root, "etc/services", "two")
	write(t, root, "usr/share/late", marker)
	chmod(t, root, "usr/share/late", 0o600)
	write(t, again.Root(), "etc/cron.d/evil", "x")
	write(t, again.Root(), "root/.ssh/authorized_keys", "x")
	if err := os.Remove(filepath.Join(again.Root(), "etc/hosts")); err != nil {
		t.Fatal(err)
	}
	chmod(t, again.Root(), "etc/passwd", 0o666)
	third, made := ensure(t, dir, root)
	if got := leaks(t, third.Root()); len(got) != 0 {
		t.Errorf("visible in the template: %q", got)
	}
	if made.Files == 0 {
		t.Error("nothing changed")
	}
	if data, err := os.ReadFile(filepath.Join(third.Root(), "etc/services")); string(data) != "two" {
		t.Errorf("services: %q, %v", data, err)
	}
	for _, gone := range []string{"etc/cron.d", "root/.ssh"} {
		if _, err := os.Lstat(filepath.Join(third.Root(), gone)); !os.IsNotExist(err) {
			t.Errorf("/%s is still there", gone)
		}
	}
	if _, made := ensure(t, dir, root); made.Files != 0 {
		t.Errorf("not settled: %d more changes", made.Files)
	}
}

func inodeOf(t *testing.T, name string) uint64 {
	t.Helper()
	info, err := os.Lstat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// TestRunningBoxesKeepUsr: a process in a mount namespace of its own, as every
// box has one, is not disturbed by Unmount nor by another Ensure, and never
// sees what was hidden from it.
func TestRunningBoxesKeepUsr(t *testing.T) {
	root := host(t, map[string]string{"usr/local/etc/conf": marker})
	dir := filepath.Join(t.TempDir(), "base")
	b, _ := ensure(t, dir, root)
	box := exec.Command("cat")
	box.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	stdin, err := box.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		if err := box.Wait(); err != nil {
			t.Error(err)
		}
	}()
	seen := filepath.Join("/proc", strconv.Itoa(box.Process.Pid), "root", b.Root())

	if err := b.Unmount(); err != nil {
		t.Fatal(err)
	}
	if err := b.Complete(); err == nil {
		t.Error("complete without /usr")
	}
	chmod(t, root, "usr/bin/bash", 0o600)
	ensure(t, dir, root)
	if _, err := os.Stat(filepath.Join(seen, "usr/bin/sh")); err != nil {
		t.Errorf("the box lost /usr: %v", err)
	}
	if got := leaks(t, seen); len(got) != 0 {
		t.Errorf("the box now sees %q", got)
	}
}

func TestRefusals(t *testing.T) {
	if _, err := New(Config{Dir: "base"}); err == nil {
		t.Error("relative directory accepted")
	}
	if _, err := New(Config{Dir: "/usr/local/moat"}); err == nil {
		t.Error("a data directory that every sandbox would see was accepted")
	}
	cases := map[string]func(root string) error{
		"no /usr":            func(root string) error { return os.RemoveAll(filepath.Join(root, "usr")) },
		"no shell":           func(root string) error { return os.Remove(filepath.Join(root, "usr/bin/sh")) },
		"/bin not merged":    func(root string) error { return replaceWithDir(filepath.Join(root, "bin")) },
		"/lib somewhere":     func(root string) error { return relink(filepath.Join(root, "lib"), "/opt/lib") },
		"bundle holds a key": func(root string) error { return os.WriteFile(filepath.Join(root, bundles[0]), []byte(keyFile), 0o644) },
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			root := host(t, nil)
			if err := spoil(root); err != nil {
				t.Fatal(err)
			}
			b, err := New(Config{Dir: filepath.Join(t.TempDir(), "base"), Host: root})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Ensure(context.Background()); err == nil {
				t.Error("accepted")
			}
			if err := b.Unmount(); err != nil {
				t.Error(err)
			}
		})
	}
}

func replaceWithDir(name string) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	return os.Mkdir(name, 0o755)
}

func relink(name, target string) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

// TestThisMachine makes the base template of the machine the test runs on and
// looks at it with all the rights root has.
func TestThisMachine(t *testing.T) {
	b, made := ensure(t, filepath.Join(t.TempDir(), "base"), "/")
	t.Logf("%d things hidden", len(made.Hidden))
	files := 0
	err := filepath.WalkDir(filepath.Join(b.Root(), "usr"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files++
		need := fs.FileMode(0o004)
		if d.IsDir() {
			need = 0o005
		}
		if perm := info.Mode().Perm(); perm&need != need && !(perm&0o001 != 0 && isProgram(name)) {
			t.Errorf("%s is visible with mode %v", name, info.Mode())
		}
		if credentialNames[d.Name()] {
			t.Errorf("%s is visible", name)
		}
		return nil
	})
	if err != nil || files < 1000 {
		t.Fatalf("%d files below /usr, %v", files, err)
	}
	for _, name := range []string{"etc", "home", "root", "var", "opt", "srv", "run"} {
		err := filepath.WalkDir(filepath.Join(b.Root(), name), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			if data, err := os.ReadFile(name); err != nil || bytes.Contains(data, privateKey) {
				t.Errorf("%s holds a private key (%v)", name, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if homes, err := os.ReadDir(filepath.Join(b.Root(), "home")); err != nil || len(homes) != 1 {
		t.Errorf("home holds %v, %v", homes, err)
	}
	runInside(t, b.Root())
}

// runInside proves that programs start: their libraries are found, their users
// are known.
func runInside(t *testing.T, root string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `. /etc/profile && echo "$PATH" && cd && pwd && ls -a && ls /root`)
	cmd.Env = []string{"HOME=/home/user"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	out, err := cmd.CombinedOutput()
	// The last command fails: user may not look into root's home.
	if err == nil || !slices.Equal(strings.Fields(string(out))[:6], []string{Path, "/home/user", ".", "..", ".bash_logout", ".bashrc"}) {
		t.Errorf("%v: %s", err, out)
	}
}
