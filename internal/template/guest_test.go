package template

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	reader "github.com/erofs/go-erofs"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestBuildGuest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "guest")
	first, err := BuildGuest(ctx, []byte("daemon 1"), []byte("{}"), dir)
	if err != nil {
		t.Fatal(err)
	}
	checkGuest(t, first, "daemon 1", "{}")
	if err := os.WriteFile(filepath.Join(dir, "new-left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := BuildGuest(ctx, []byte("daemon 1"), []byte("{}"), dir)
	if err != nil || again.Dir != first.Dir || again.Image != first.Image {
		t.Fatalf("a second time: %+v, %v", again, err)
	}
	second, err := BuildGuest(ctx, []byte("daemon 2"), []byte("{}"), dir)
	if err != nil || second.Dir == first.Dir || second.Image == first.Image {
		t.Fatalf("another version: %+v, %v", second, err)
	}
	checkGuest(t, second, "daemon 2", "{}")
	checkGuest(t, first, "daemon 1", "{}")
	third, err := BuildGuest(ctx, []byte("daemon 1"), []byte(`{"hostname":"x"}`), dir)
	if err != nil || third.Dir == first.Dir || third.Image == first.Image {
		t.Fatalf("another setup: %+v, %v", third, err)
	}
	checkGuest(t, third, "daemon 1", `{"hostname":"x"}`)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 6 {
		t.Errorf("%v, %v; want 3 images and 3 directories", entries, err)
	}

	// What was damaged is made anew.
	if err := os.WriteFile(filepath.Join(first.Dir, "guest"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(first.Image, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := BuildGuest(ctx, []byte("daemon 1"), []byte("{}"), dir); err != nil {
		t.Fatal(err)
	}
	checkGuest(t, first, "daemon 1", "{}")

	if _, err := BuildGuest(ctx, nil, []byte("{}"), dir); err == nil {
		t.Error("an empty daemon was accepted")
	}
	if _, err := BuildGuest(ctx, []byte("x"), []byte("{}"), "relative"); err == nil {
		t.Error("a relative directory was accepted")
	}
}

// checkGuest looks into both forms of a guest.
func checkGuest(t *testing.T, g sandbox.Guest, daemon, setup string) {
	t.Helper()
	f, err := os.Open(g.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inside, err := reader.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	for form, files := range map[string]fs.FS{g.Dir: os.DirFS(g.Dir), g.Image: inside} {
		for name, want := range map[string]string{"guest": daemon, "setup": setup} {
			if got, err := fs.ReadFile(files, name); err != nil || string(got) != want {
				t.Errorf("%s: %s holds %q, %v", form, name, got, err)
			}
		}
		if info, err := fs.Stat(files, "guest"); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", form, info, err)
		}
	}
	if want := []string{"--setup", sandbox.GuestDir + "/setup"}; !slices.Equal(g.Args, want) {
		t.Errorf("arguments are %q, want %q", g.Args, want)
	}
}
