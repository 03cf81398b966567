package rootfs

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/template/erofs"
)

func TestAddDir(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	root := t.TempDir()
	steps := []error{
		os.WriteFile(secret, []byte("secret"), 0o644),
		os.MkdirAll(filepath.Join(root, "etc"), 0o755),
		os.WriteFile(filepath.Join(root, "etc/conf"), []byte("a"), 0o640),
		os.Chown(filepath.Join(root, "etc/conf"), 12, 34),
		os.Link(filepath.Join(root, "etc/conf"), filepath.Join(root, "hard")),
		os.Symlink(secret, filepath.Join(root, "out")),
		os.Symlink("../../../..", filepath.Join(root, "up")),
		os.WriteFile(filepath.Join(root, "bad\xff\xfename"), []byte("b"), 0o600),
		os.WriteFile(filepath.Join(root, "suid"), nil, 0o600),
		os.Chmod(filepath.Join(root, "suid"), os.ModeSetuid|0o755),
		unix.Mkfifo(filepath.Join(root, "pipe"), 0o600),
		unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Setxattr(filepath.Join(root, "suid"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(root, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()

	b, _ := newBuilder(t)
	if err := b.AddDir(context.Background(), root); err != nil {
		t.Fatal(err)
	}
	want(t, b, "bad\xff\xfename b", "etc/", "etc/conf a", "hard a", "out -> "+secret, "pipe of type 010000", "suid ", "up -> ../../../..")
	if b.root.Children["hard"] != b.root.Children["etc"].Children["conf"] {
		t.Error("hard link became a copy")
	}
	if conf := b.root.Children["hard"]; conf.UID != 12 || conf.GID != 34 || conf.Mode != unix.S_IFREG|0o640 {
		t.Errorf("conf is %+v", conf)
	}
	if mode := b.root.Children["suid"].Mode; mode != unix.S_IFREG|0o4755 {
		t.Errorf("suid has mode %#o", mode)
	}
	if got := b.Dropped(); got != (Dropped{Devices: 1, Sockets: 1, Xattrs: 1}) {
		t.Errorf("dropped %+v", got)
	}
}

// TestAddDirStaysOnItsFileSystem: a root directory in which somebody works may
// have /proc or the host's home directories mounted.
func TestAddDirStaysOnItsFileSystem(t *testing.T) {
	root := t.TempDir()
	mnt := filepath.Join(root, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("moat-test", mnt, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(mnt, "other"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	b, _ := newBuilder(t)
	if err := b.AddDir(context.Background(), root); err != nil {
		t.Fatal(err)
	}
	want(t, b, "mnt/")
}

func TestAddDirRefuses(t *testing.T) {
	b, _ := newBuilder(t)
	if err := b.AddDir(context.Background(), filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("missing directory: %v", err)
	}
	big := t.TempDir()
	f, err := os.Create(filepath.Join(big, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(testBytes + 1); err != nil {
		t.Fatal(err)
	}
	if err := b.AddDir(context.Background(), big); !errors.Is(err, erofs.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.AddDir(ctx, big); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
