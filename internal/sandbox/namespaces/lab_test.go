package namespaces

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/template/erofs"
)

var testLimits = sandbox.Limits{CPUs: 1, MemoryMB: 256, DiskMB: 16, Processes: 64}

// shared is what all tests use and TestMain removes.
var shared struct {
	once  sync.Once
	dir   string
	guest string // the directory that holds the guest
	root  string // a directory with the host's /usr mounted in it
	image string
	err   error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.dir != "" {
		if err := removeShared(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// removeShared removes nothing as long as anything is mounted.
func removeShared() error {
	if err := unmountBelow(shared.dir); err != nil {
		return err
	}
	return os.RemoveAll(shared.dir)
}

// showUsr mounts the host's /usr at target, read-only: whoever removes the
// directory of a test that was killed must not remove the host's programs.
func showUsr(target string) error {
	if err := unix.Mount("/usr", target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return errors.Join(
		unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
		unix.Mount("", target, "", unix.MS_PRIVATE, ""),
	)
}

func prepareShared() error {
	dir, err := os.MkdirTemp("", "moat-namespaces-")
	if err != nil {
		return err
	}
	shared.dir, shared.guest, shared.root = dir, filepath.Join(dir, "guest"), filepath.Join(dir, "root")
	shared.image = filepath.Join(dir, "image.erofs")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(shared.guest, "guest"), "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, d := range []string{"etc", "tmp", "usr", "home"} {
		if err := os.MkdirAll(filepath.Join(shared.root, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(shared.root, d)); err != nil {
			return err
		}
	}
	if err := showUsr(filepath.Join(shared.root, "usr")); err != nil {
		return err
	}
	return writeImage(shared.image, filepath.Join(shared.guest, "guest"))
}

// writeImage makes an image whose /bin/self is the guest.
func writeImage(path, guest string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	program, err := os.Open(guest)
	if err != nil {
		return err
	}
	defer program.Close()
	w, err := erofs.NewWriter(f, 1<<30)
	if err != nil {
		return err
	}
	data, err := w.Append(program)
	if err != nil {
		return err
	}
	dir := func(children map[string]*erofs.Node) *erofs.Node {
		return &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: children}
	}
	return w.Finish(dir(map[string]*erofs.Node{
		"tmp": dir(nil), "bin": dir(map[string]*erofs.Node{"self": {Mode: unix.S_IFREG | 0o755, Data: data}}),
	}))
}

// lab is a runtime with a directory of its own.
type lab struct {
	*Runtime
	t    testing.TB
	root string
	log  *lockedBuffer
}

// newLab returns nil where the machine has no container runtime; that Probe
// says so has been tested then.
func newLab(t testing.TB) *lab {
	t.Helper()
	shared.once.Do(func() { shared.err = prepareShared() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	l := &lab{t: t, root: filepath.Join(t.TempDir(), "ns"), log: new(lockedBuffer)}
	l.Runtime = l.open()
	t.Cleanup(l.close)
	if !l.works() {
		return nil
	}
	return l
}

// works probes the machine. Where runc is installed it must work.
func (l *lab) works() bool {
	l.t.Helper()
	_, err := l.Probe(l.t.Context())
	if err == nil {
		return true
	}
	if _, missing := exec.LookPath("runc"); missing == nil {
		l.t.Fatal(err)
	}
	if _, missing := exec.LookPath("crun"); missing != nil && !errors.Is(err, errNoEngine) {
		l.t.Fatalf("nothing is installed, Probe says %v", err)
	}
	if !strings.Contains(err.Error(), "runc") && !strings.Contains(err.Error(), "crun") {
		l.t.Fatalf("Probe does not say what is missing: %v", err)
	}
	l.t.Logf("this machine has no container runtime that works: %v", err)
	return false
}

func (l *lab) open() *Runtime {
	l.t.Helper()
	r, err := New(Config{Root: l.root, Instance: fmt.Sprintf("test%d", os.Getpid()), Logger: slog.New(slog.NewTextHandler(l.log, nil))})
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// restart opens a second runtime in the place of the first, as a server that
// was killed and started again.
func (l *lab) restart() {
	l.t.Helper()
	old := l.Runtime
	l.Runtime = l.open()
	l.t.Cleanup(func() {
		if err := old.Close(); err != nil {
			l.t.Error(err)
		}
	})
}

// close removes every box and checks that nothing is left.
func (l *lab) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ids, err := l.List(ctx)
	if err != nil {
		l.t.Error(err)
	}
	for _, id := range ids {
		if err := l.Remove(ctx, id); err != nil {
			l.t.Error(err)
		}
	}
	if err := l.Close(); err != nil {
		l.t.Error(err)
	}
	if left := l.traces(""); len(left) != 0 {
		l.t.Errorf("left on the machine: %q", left)
	}
}

// traces lists what there is of a box, of all for "": mounts, files, cgroups
// and processes.
func (l *lab) traces(id string) []string {
	l.t.Helper()
	points, err := below(l.root)
	if err != nil {
		l.t.Fatal(err)
	}
	found := slices.DeleteFunc(points, func(p string) bool { return !strings.Contains(p, id) })
	err = filepath.WalkDir(l.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if id == "" && filepath.Dir(name) == l.boxDir("") || id != "" && d.Name() == id {
			found = append(found, name)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	trees, err := hierarchies()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, tree := range trees {
		group := filepath.Join(tree.point, l.groupPath(id))
		if _, err := os.Stat(group); err == nil {
			found = append(found, group)
		}
	}
	return found
}

// slot is a network namespace with nothing but loopback.
type slot struct{ ns *os.File }

func newSlot(t testing.TB) *slot {
	t.Helper()
	ns, err := newNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	s := &slot{ns}
	if err := s.inside(raiseLoopback); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *slot) path() string { return fmt.Sprintf("/proc/self/fd/%d", s.ns.Fd()) }

// inside calls f on a thread in the namespace, which ends with the call.
func (s *slot) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := s.inside(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

type request struct {
	Op   string
	Args []string
	N    int
}

type reply struct{ Out, Err string }

// ask sends a request to the guest, waiting until it listens.
func (s *slot) ask(q request) (r reply, err error) {
	err = s.inside(func() error {
		deadline := time.Now().Add(20 * time.Second)
		for {
			c, err := net.Dial("tcp", "127.0.0.1:7777")
			if err == nil {
				defer c.Close()
				return errors.Join(c.SetDeadline(deadline), json.NewEncoder(c).Encode(q), json.NewDecoder(c).Decode(&r))
			}
			if !errors.Is(err, unix.ECONNREFUSED) || time.Now().After(deadline) {
				return err
			}
			runtime.Gosched()
		}
	})
	return r, err
}

func (s *slot) must(t testing.TB, q request) string {
	t.Helper()
	r, err := s.ask(q)
	if err != nil || r.Err != "" {
		t.Fatalf("%+v: %v, %s: %s", q, err, r.Err, r.Out)
	}
	return r.Out
}

// start runs a box with the guest in it.
func (l *lab) start(root sandbox.Root, limits sandbox.Limits, args ...string) (sandbox.Box, *slot) {
	l.t.Helper()
	s := newSlot(l.t)
	b, err := l.Prepare(l.t.Context(), sandbox.NewBoxID(), s.path(), limits)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := b.Start(l.t.Context(), startSpec(root, limits, args...)); err != nil {
		l.t.Fatal(err)
	}
	return b, s
}

func startSpec(root sandbox.Root, limits sandbox.Limits, args ...string) sandbox.StartSpec {
	return sandbox.StartSpec{
		Hostname: "castle", Root: root, Limits: limits,
		Guest: sandbox.Guest{Dir: shared.guest, Args: args, Env: []string{"PATH=/usr/bin:/bin", "A=b"}},
	}
}

func dirRoot() sandbox.Root { return sandbox.Root{Dir: shared.root} }

// lockedBuffer is a log that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
