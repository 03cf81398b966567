package template

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/store/bolt"
)

var testLimits = sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 1024, Processes: 500}

// rig is a library over a real store, both below dir.
type rig struct {
	t     *testing.T
	dir   string
	store *bolt.Store
	log   bytes.Buffer
	*Library
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	s, err := bolt.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	r.store = s
	t.Cleanup(func() { s.Close() })
	r.open()
	return r
}

// open opens the library, as a restarted server does.
func (r *rig) open() {
	r.t.Helper()
	l, err := Open(Config{
		Dir: filepath.Join(r.dir, "templates"), Store: r.store, Defaults: testLimits,
		Logger: slog.New(slog.NewTextHandler(&r.log, nil)),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.Library = l
}

// files lists the images that are there.
func (r *rig) files() []string {
	r.t.Helper()
	entries, err := os.ReadDir(r.images())
	if err != nil {
		r.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// image opens a template's image.
func (r *rig) image(t store.Template) fs.FS {
	r.t.Helper()
	f, err := os.Open(t.Root.Image)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { f.Close() })
	image, err := reader.Open(f)
	if err != nil {
		r.t.Fatal(err)
	}
	return image
}

func (r *rig) holds(t store.Template, name, want string) {
	r.t.Helper()
	if got, err := fs.ReadFile(r.image(t), name); err != nil || string(got) != want {
		r.t.Errorf("/%s holds %q, %v; want %q", name, got, err, want)
	}
}

// tarball writes an archive of files, name and content in turn, and returns
// its path. compress may be nil.
func (r *rig) tarball(compress func(io.Writer) io.WriteCloser, files ...string) string {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "root.tar")
	f, err := os.Create(path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	var out io.WriteCloser = f
	if compress != nil {
		out = compress(f)
	}
	if _, err := out.Write(tarOf(r.t, files...)); err != nil {
		r.t.Fatal(err)
	}
	if compress != nil {
		if err := out.Close(); err != nil {
			r.t.Fatal(err)
		}
	}
	return path
}

// tarOf returns a tar archive of files, name and content in turn. A content
// that begins with "->" makes a link.
func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o755, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if target, ok := strings.CutPrefix(files[i+1], "->"); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, files[i+1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func (r *rig) must(t store.Template, err error) store.Template {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	return t
}

var ctx = context.Background()
