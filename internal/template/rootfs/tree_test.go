package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/template/erofs"
)

const (
	testBytes = 64 << 20
	testFiles = 20000
)

// newBuilder starts a tree in a temporary image.
func newBuilder(t testing.TB) (*Builder, *os.File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := erofs.NewWriter(f, testBytes)
	if err != nil {
		t.Fatal(err)
	}
	return New(w, testFiles), f
}

// archive writes a tar archive. Headers get sensible defaults; a file's
// content is what its PAXRecords hold under "content".
func archive(t testing.TB, headers ...tar.Header) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		data := h.PAXRecords["content"]
		h.PAXRecords = maps.Clone(h.PAXRecords)
		delete(h.PAXRecords, "content")
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.Size == 0 {
			h.Size = int64(len(data))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func file(name, data string) tar.Header {
	return tar.Header{Name: name, PAXRecords: map[string]string{"content": data}}
}

func dir(name string) tar.Header { return tar.Header{Name: name + "/", Typeflag: tar.TypeDir} }

func symlink(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
}

func hardlink(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
}

// dump lists a tree, one line per name: "path content", "path/" for a
// directory, "path -> target" for a link.
func dump(t testing.TB, b *Builder) []string {
	t.Helper()
	var lines []string
	var visit func(path string, n *erofs.Node)
	visit = func(path string, n *erofs.Node) {
		for _, name := range slices.Sorted(maps.Keys(n.Children)) {
			child, full := n.Children[name], path+name
			switch {
			case child.IsDir():
				lines = append(lines, full+"/")
				visit(full+"/", child)
			case child.IsSymlink():
				lines = append(lines, full+" -> "+child.Target)
			case child.IsRegular():
				data, err := io.ReadAll(b.image.Data(child.Data))
				if err != nil {
					t.Fatalf("%s: %v", full, err)
				}
				lines = append(lines, full+" "+string(data))
			default:
				lines = append(lines, fmt.Sprintf("%s of type %#o", full, child.Mode&unix.S_IFMT))
			}
		}
	}
	visit("", b.Root())
	return lines
}

func want(t *testing.T, b *Builder, lines ...string) {
	t.Helper()
	if got := dump(t, b); !slices.Equal(got, lines) {
		t.Errorf("tree is\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(lines, "\n  "))
	}
}

func addLayers(t *testing.T, b *Builder, layers ...[]tar.Header) {
	t.Helper()
	for i, layer := range layers {
		if err := b.AddLayer(context.Background(), archive(t, layer...)); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
	}
}
