package gvisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
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
	return l, unix.Mount("/usr", filepath.Join(root, "usr"), "", unix.MS_BIND|unix.MS_REC, "")
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
	dir, err := os.MkdirTemp("", "gv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r, err := New(Config{Root: filepath.Join(dir, "r"), Instance: "test", Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

var testLimits = sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 64, Processes: 64}

// startBox prepares and starts a box in a slot of its own.
func startBox(t testing.TB, r *Runtime, root sandbox.Root, limits sandbox.Limits, args ...string) (sandbox.Box, *slot) {
	t.Helper()
	l, s := newLab(t), newSlot(t)
	b, err := r.Prepare(t.Context(), sandbox.NewBoxID(), s.path(), limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	guest := l.guest
	guest.Args = args
	guest.Env = []string{"PATH=/usr/bin:/bin", "HELLO=world"}
	if err := b.Start(t.Context(), sandbox.StartSpec{Hostname: "castle", Root: root, Guest: guest, Limits: limits}); err != nil {
		t.Fatal(err)
	}
	return b, s
}

func TestProbe(t *testing.T) {
	r := newRuntime(t)
	caps, err := r.Probe(t.Context())
	t.Logf("%+v %v", caps, err)
	if err != nil {
		t.Fatal(err)
	}
}

func TestStartImage(t *testing.T) {
	_, s := startBox(t, newRuntime(t), newLab(t).image, testLimits)
	for _, op := range []string{"ping", "hostname", "args"} {
		t.Logf("%s: %+v", op, s.must(t, request{Op: op}))
	}
	for _, path := range []string{"/proc/self/status", "/proc/mounts", "/proc/meminfo", "/etc/passwd"} {
		t.Log(s.must(t, request{Op: "read", Path: path}).Out)
	}
	for _, path := range []string{"/", "/tmp", "/dev", "/.moat"} {
		t.Log(s.must(t, request{Op: "list", Path: path}).Out)
	}
}

func TestStartDir(t *testing.T) {
	_, s := startBox(t, newRuntime(t), newLab(t).host, testLimits)
	t.Log(s.must(t, request{Op: "run", Args: []string{"/bin/sh", "-c", "id; ls /; df -h; nproc; ls -la /tmp; touch /usr/x && echo wrote; python3 -c 'print(1)'; ls /usr/bin | wc -l"}}).Out)
}
