package template

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

func TestBase(t *testing.T) {
	r := newRig(t)
	t.Cleanup(func() {
		if err := r.Unmount(); err != nil {
			t.Error(err)
		}
	})
	if _, err := r.Resolve(ctx, Base); !errors.Is(err, sandbox.ErrTemplateNotFound) {
		t.Errorf("before it is made: %v", err)
	}
	if err := r.EnsureBase(ctx); err != nil {
		t.Fatal(err)
	}
	first := r.must(r.Resolve(ctx, Base))
	if first.ID != Base || first.User != "user" || first.Workdir != "/home/user" || first.Limits != testLimits || first.Root.Image != "" {
		t.Errorf("base is %+v", first)
	}
	if _, err := os.Stat(filepath.Join(first.Root.Dir, "usr/bin/sh")); err != nil {
		t.Error(err)
	}
	if alias := r.must(r.Resolve(ctx, Interpreter)); alias.ID != Base {
		t.Errorf("%s is %s", Interpreter, alias.ID)
	}

	// A restarted server finds it, also before it has looked at the host again.
	r.open()
	r.must(r.Resolve(ctx, Base))
	if err := r.EnsureBase(ctx); err != nil {
		t.Fatal(err)
	}
	if again := r.must(r.Resolve(ctx, Base)); !again.CreatedAt.Equal(first.CreatedAt) {
		t.Error("it became younger")
	}
	if err := r.Remove(ctx, Interpreter); !errors.Is(err, ErrBase) {
		t.Errorf("removed by its alias: %v", err)
	}
	if err := r.Unmount(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(ctx, Base); !errors.Is(err, sandbox.ErrTemplateBroken) {
		t.Errorf("without /usr: %v", err)
	}
}

func TestAddTar(t *testing.T) {
	for name, compress := range map[string]func(io.Writer) io.WriteCloser{
		"plain": nil,
		"gzip":  func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w)
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			path := r.tarball(compress, "bin/sh", "shell", "etc/hostname", "here", "link", "->bin/sh")
			got := r.must(r.AddTar(ctx, path, []string{"mine", "also-mine"}))
			r.holds(got, "bin/sh", "shell")
			r.holds(got, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
			if got.User != "user" || got.Workdir != "/home/user" || got.Limits != testLimits || got.Source != "archive "+path || got.SizeBytes == 0 {
				t.Errorf("template %+v", got)
			}
			if !slices.Equal(got.Env, []string{defaultPath}) {
				t.Errorf("environment %q", got.Env)
			}
			for _, ref := range []string{got.ID, "mine", "also-mine"} {
				if found := r.must(r.Resolve(ctx, ref)); found.ID != got.ID {
					t.Errorf("%s is %s", ref, found.ID)
				}
			}
		})
	}
}

func TestAddTarRefuses(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	write := func(name, data string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := string(tarOf(t, "bin/sh", strings.Repeat("x", 1000)))
	for name, path := range map[string]string{
		"relative":      "root.tar",
		"missing":       filepath.Join(dir, "none"),
		"directory":     dir,
		"device":        "/dev/zero",
		"empty":         write("empty", ""),
		"no archive":    write("text", strings.Repeat("this is no archive ", 100)),
		"xz":            write("xz", "\xfd7zXZ\x00rest"),
		"broken gzip":   write("gzip", "\x1f\x8bnot gzip at all"),
		"broken zstd":   write("zstd", "\x28\xb5\x2f\xfdnot zstd at all"),
		"cut short":     write("cut", good[:700]),
		"climbing":      write("climbing", string(tarOf(t, "../x", "y"))),
		"saved image":   write("saved", string(tarOf(t, "manifest.json", "[]", "abc/layer.tar", "x"))),
		"file for /tmp": write("tmp", string(tarOf(t, "tmp", "x"))),
	} {
		if _, err := r.AddTar(ctx, path, []string{"x"}); err == nil {
			t.Errorf("%s: accepted", name)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the error does not name the file: %v", name, err)
		}
	}
	if left := r.files(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	if all, err := r.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("%d templates, %v", len(all), err)
	}
}

func TestAddDir(t *testing.T) {
	r := newRig(t)
	root := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "bin"), 0o755), os.WriteFile(filepath.Join(root, "bin/sh"), []byte("shell"), 0o755)); err != nil {
		t.Fatal(err)
	}
	got := r.must(r.AddDir(ctx, root, []string{"dir"}))
	r.holds(got, "bin/sh", "shell")

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(r.dir, link); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{
		"the whole machine": "/", "relative": "root", "missing": filepath.Join(root, "none"), "a file": filepath.Join(root, "bin/sh"),
		"what contains our data": r.dir, "the same by a link": link, "our data": r.images(),
	} {
		if _, err := r.AddDir(ctx, dir, []string{"x"}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestNames(t *testing.T) {
	r := newRig(t)
	path := r.tarball(nil, "bin/sh", "x")
	first := r.must(r.AddTar(ctx, path, []string{"first"}))
	for _, names := range [][]string{
		nil, {""}, {"UPPER"}, {"with space"}, {"a/b"}, {"-dash"}, {"_low"}, {"dots.in.it"}, {"ä"}, {strings.Repeat("x", 65)},
		{"twice", "twice"}, {Base}, {"fine", Interpreter}, {first.ID},
	} {
		if _, err := r.AddTar(ctx, path, names); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", names, err)
		}
	}
	// A name moves to the template that took it last.
	second := r.must(r.AddTar(ctx, path, []string{"second", "first"}))
	if got := r.must(r.Resolve(ctx, "first")); got.ID != second.ID {
		t.Errorf("first is %s, want %s", got.ID, second.ID)
	}
	if got := r.must(r.Resolve(ctx, first.ID)); len(got.Names) != 0 {
		t.Errorf("it kept the names %q", got.Names)
	}
	for _, ref := range []string{"", "none", "../../etc/passwd", "A", strings.Repeat("x", 1000), "a\x00b"} {
		if _, err := r.Resolve(ctx, ref); !errors.Is(err, sandbox.ErrTemplateNotFound) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

// TestSameContentIsKeptOnce: two templates of one content share the image, and
// it stays as long as one of them does.
func TestSameContentIsKeptOnce(t *testing.T) {
	r := newRig(t)
	path := r.tarball(nil, "bin/sh", "x")
	a := r.must(r.AddTar(ctx, path, []string{"a"}))
	b := r.must(r.AddTar(ctx, path, []string{"b"}))
	other := r.must(r.AddTar(ctx, r.tarball(nil, "bin/sh", "y"), []string{"other"}))
	if a.Root != b.Root || a.Root == other.Root || len(r.files()) != 2 {
		t.Fatalf("images %v, %v, %v in %q", a.Root, b.Root, other.Root, r.files())
	}
	running, err := os.Open(a.Root.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if err := r.Remove(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	r.must(r.Resolve(ctx, "b"))
	if err := r.Remove(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	if got := r.files(); !slices.Equal(got, []string{filepath.Base(other.Root.Image)}) {
		t.Errorf("images left: %q", got)
	}
	if _, err := running.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("a sandbox lost its files: %v", err)
	}
	if err := r.Remove(ctx, "a"); !errors.Is(err, sandbox.ErrTemplateNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

func TestBrokenTemplate(t *testing.T) {
	r := newRig(t)
	path := r.tarball(nil, "bin/sh", "x")
	made := r.must(r.AddTar(ctx, path, []string{"mine"}))
	if err := os.Truncate(made.Root.Image, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(ctx, "mine"); !errors.Is(err, sandbox.ErrTemplateBroken) {
		t.Errorf("cut short: %v", err)
	}
	// Adding it again repairs it.
	r.must(r.AddTar(ctx, path, []string{"mine"}))
	r.must(r.Resolve(ctx, "mine"))
	if err := os.Remove(made.Root.Image); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(ctx, "mine"); !errors.Is(err, sandbox.ErrTemplateBroken) {
		t.Errorf("vanished: %v", err)
	}
	if err := r.Remove(ctx, "mine"); err != nil {
		t.Errorf("a broken template cannot be removed: %v", err)
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	r := newRig(t)
	kept := r.must(r.AddTar(ctx, r.tarball(nil, "bin/sh", "x"), []string{"mine"}))
	for _, name := range []string{"new-123", "0000.erofs"} {
		if err := os.WriteFile(filepath.Join(r.images(), name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.open()
	if got := r.files(); !slices.Equal(got, []string{filepath.Base(kept.Root.Image)}) {
		t.Errorf("images left: %q", got)
	}
	// The data directory may have been moved while the server was down.
	moved := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Rename(r.dir, moved); err != nil {
		t.Fatal(err)
	}
	r.dir = moved
	r.open()
	r.holds(r.must(r.Resolve(ctx, "mine")), "bin/sh", "x")
}

func TestOpenRefuses(t *testing.T) {
	r := newRig(t)
	logger := slog.New(slog.DiscardHandler)
	for name, cfg := range map[string]Config{
		"no store":     {Dir: r.dir, Logger: logger},
		"no logger":    {Dir: r.dir, Store: r.store},
		"relative":     {Dir: "templates", Store: r.store, Logger: logger},
		"below /usr":   {Dir: "/usr/local/moat", Store: r.store, Logger: logger},
		"not writable": {Dir: "/proc/moat", Store: r.store, Logger: logger},
	} {
		if _, err := Open(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCancelled(t *testing.T) {
	r := newRig(t)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.AddTar(cancelled, r.tarball(nil, "bin/sh", "x"), []string{"mine"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := r.files(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestFullDisk: when there is no room, nothing half done stays and what was
// there still works.
func TestFullDisk(t *testing.T) {
	r := newRig(t)
	disk := filepath.Join(r.dir, "templates")
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("moat-test", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r.open()
	small := r.must(r.AddTar(ctx, r.tarball(nil, "bin/sh", "x"), []string{"small"}))
	big := r.tarball(nil, "bin/sh", "x", "data", strings.Repeat("data", 1<<19))
	if _, err := r.AddTar(ctx, big, []string{"big"}); !errors.Is(err, store.ErrFull) {
		t.Errorf("got %v, want %v", err, store.ErrFull)
	}
	if got := r.files(); !slices.Equal(got, []string{filepath.Base(small.Root.Image)}) {
		t.Errorf("left behind: %q", got)
	}
	if _, err := r.Resolve(ctx, "big"); !errors.Is(err, sandbox.ErrTemplateNotFound) {
		t.Errorf("big: %v", err)
	}
	r.holds(r.must(r.Resolve(ctx, "small")), "bin/sh", "x")
	if _, err := BuildGuest(ctx, bytes.Repeat([]byte("guest"), 1<<18), nil, filepath.Join(disk, "guest")); !errors.Is(err, store.ErrFull) {
		t.Errorf("guest: %v", err)
	}
	if err := r.EnsureBase(ctx); !errors.Is(err, store.ErrFull) {
		t.Errorf("base: %v", err)
	}
	if err := r.Unmount(); err != nil {
		t.Error(err)
	}
}
