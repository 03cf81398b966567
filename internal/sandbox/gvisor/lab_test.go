package gvisor

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// lab holds what the tests share: the guest and the two kinds of root.
type lab struct {
	dir   string
	guest sandbox.Guest
	image sandbox.Root // nothing but directories
	host  sandbox.Root // the host's /usr, as in the base template
}

var theLab struct {
	once sync.Once
	lab  *lab
	err  error
}

func newLab(t testing.TB) *lab {
	t.Helper()
	theLab.once.Do(func() { theLab.lab, theLab.err = makeLab() })
	if theLab.err != nil {
		t.Fatal(theLab.err)
	}
	return theLab.lab
}

func makeLab() (*lab, error) {
	dir, err := os.MkdirTemp("", "gvlab")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir}
	guestDir := filepath.Join(dir, "guest")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", guestDir+"/guest", "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	l.guest = sandbox.Guest{Image: filepath.Join(dir, "guest.erofs"), Dir: guestDir}
	if err := makeImage(l.guest.Image, guestDir); err != nil {
		return nil, err
	}
	root := filepath.Join(dir, "root")
	for _, d := range []string{"etc", "root", "home/user", "tmp", "usr", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(root, "etc/secret"), []byte("of root"), 0o600); err != nil {
		return nil, err
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			return nil, err
		}
	}
	l.image.Image = filepath.Join(dir, "root.erofs")
	if err := makeImage(l.image.Image, root); err != nil {
		return nil, err
	}
	l.host.Dir = root
	usr := filepath.Join(root, "usr")
	if err := unix.Mount("/usr", usr, "", unix.MS_BIND, ""); err != nil {
		return nil, err
	}
	// Read-only, so that whoever tidies up after a killed test harms nothing.
	return l, unix.Mount("", usr, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func (l *lab) close() error {
	if err := unix.Unmount(filepath.Join(l.dir, "root/usr"), unix.MNT_DETACH); err != nil {
		return err
	}
	return os.RemoveAll(l.dir)
}

func makeImage(path, dir string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := erofs.Create(f)
	if err := w.CopyFrom(os.DirFS(dir)); err != nil {
		return err
	}
	return w.Close()
}

func newRuntime(t testing.TB) *Runtime {
	t.Helper()
	return openRuntime(t, t.TempDir())
}

// openRuntime returns a runtime on root, and checks at the end of the test that
// nothing is left of its boxes.
func openRuntime(t testing.TB, root string) *Runtime {
	t.Helper()
	r, err := openTest(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := traces(t, r); left != nil {
			t.Errorf("left behind: %q", left)
		}
	})
	return r
}

// exeEnv names another build of this test binary for the boxes to run. The race
// detector needs cgo, which a sentry cannot have: build one without, with
// "CGO_ENABLED=0 go test -c", and run the tests under -race with this.
const exeEnv = "MOAT_TEST_GVISOR_EXE"

func openTest(root string) (*Runtime, error) {
	if exe := os.Getenv(exeEnv); exe != "" {
		return open(testConfig(root), exe)
	}
	return New(testConfig(root))
}

func testConfig(root string) Config {
	// Runs at the same time need instances of their own.
	instance := fmt.Sprintf("test-%x", sha256.Sum256([]byte(root)))[:24]
	return Config{Root: root, Instance: instance, Logger: slog.New(slog.DiscardHandler)}
}

// traces lists everything on the machine that belongs to boxes of r.
func traces(t testing.TB, r *Runtime) []string {
	t.Helper()
	ids, err := r.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/moat-" + r.instance + "*")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	left := append(ids, groups...)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, r.root) {
			left = append(left, line)
		}
	}
	return left
}

var testLimits = sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 64, Processes: 64}

func prepareBox(t testing.TB, r *Runtime, limits sandbox.Limits) (sandbox.Box, *slot) {
	t.Helper()
	s := newSlot(t)
	b, err := r.Prepare(t.Context(), sandbox.NewBoxID(), s.path(), limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b, s
}

// startSpec is what the tests start unless they have a reason to differ.
func (l *lab) startSpec(root sandbox.Root, limits sandbox.Limits, args ...string) sandbox.StartSpec {
	guest := l.guest
	guest.Args = args
	guest.Env = []string{"PATH=/usr/bin:/bin", "HELLO=world"}
	return sandbox.StartSpec{Hostname: "castle", Root: root, Guest: guest, Limits: limits}
}

// startBox prepares and starts a box in a slot of its own.
func startBox(t testing.TB, r *Runtime, root sandbox.Root, limits sandbox.Limits, args ...string) (sandbox.Box, *slot) {
	t.Helper()
	b, s := prepareBox(t, r, limits)
	if err := b.Start(t.Context(), newLab(t).startSpec(root, limits, args...)); err != nil {
		t.Fatal(err)
	}
	return b, s
}

// roots names both kinds of root.
func (l *lab) roots() map[string]sandbox.Root {
	return map[string]sandbox.Root{"image": l.image, "dir": l.host}
}
