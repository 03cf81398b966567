package rootfs

import (
	"bytes"
	"io"
	"os"
	"testing"

	sentry "gvisor.dev/gvisor/pkg/erofs"

	"github.com/moat-sandbox/moat/internal/template/erofs"
)

// checkImage writes the image and reads it back the way a sandbox does.
func checkImage(t *testing.T, b *Builder, file *os.File) {
	t.Helper()
	if err := b.image.Finish(b.Root()); err != nil {
		t.Fatalf("a tree was built that cannot be written: %v", err)
	}
	f, err := os.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	image, err := sentry.OpenImage(f)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	checkNode(t, b, image, image.RootNid(), b.Root())
}

func checkNode(t *testing.T, b *Builder, image *sentry.Image, nid uint64, want *erofs.Node) {
	t.Helper()
	ino, err := image.Inode(nid)
	if err != nil || ino.Mode() != want.Mode {
		t.Fatalf("inode %d: mode %#o, %v; want %#o", nid, ino.Mode(), err, want.Mode)
	}
	if want.IsRegular() && want.Data.Size > 0 {
		expect, err := io.ReadAll(b.image.Data(want.Data))
		if err != nil {
			t.Fatal(err)
		}
		offset, err := ino.DataOffset()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := image.BytesAt(offset, ino.Size()); err != nil || !bytes.Equal(got, expect) {
			t.Fatalf("inode %d holds %d bytes, %v; want %d", nid, len(got), err, len(expect))
		}
	}
	for name, child := range want.Children {
		nid, err := ino.Lookup(name)
		if err != nil {
			t.Fatalf("lookup %q: %v", name, err)
		}
		checkNode(t, b, image, nid, child)
	}
}
