package template

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	reader "github.com/erofs/go-erofs"
)

func TestBuildGuest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "guest")
	first, err := BuildGuest(ctx, []byte("daemon 1"), dir)
	if err != nil {
		t.Fatal(err)
	}
	checkGuest(t, first.Dir, first.Image, "daemon 1")
	if err := os.WriteFile(filepath.Join(dir, "new-left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := BuildGuest(ctx, []byte("daemon 1"), dir)
	if err != nil || again.Dir != first.Dir || again.Image != first.Image {
		t.Fatalf("a second time: %+v, %v", again, err)
	}
	second, err := BuildGuest(ctx, []byte("daemon 2"), dir)
	if err != nil || second.Dir == first.Dir || second.Image == first.Image {
		t.Fatalf("another version: %+v, %v", second, err)
	}
	checkGuest(t, second.Dir, second.Image, "daemon 2")
	checkGuest(t, first.Dir, first.Image, "daemon 1")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
		t.Errorf("%v, %v; want 2 images and 2 directories", entries, err)
	}

	// What was damaged is made anew.
	if err := os.WriteFile(filepath.Join(first.Dir, "guest"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(first.Image, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := BuildGuest(ctx, []byte("daemon 1"), dir); err != nil {
		t.Fatal(err)
	}
	checkGuest(t, first.Dir, first.Image, "daemon 1")

	if _, err := BuildGuest(ctx, nil, dir); err == nil {
		t.Error("an empty daemon was accepted")
	}
	if _, err := BuildGuest(ctx, []byte("x"), "relative"); err == nil {
		t.Error("a relative directory was accepted")
	}
}

func checkGuest(t *testing.T, dir, image, want string) {
	t.Helper()
	path := filepath.Join(dir, "guest")
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o755 {
		t.Fatalf("%s: %v, %v", path, info, err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v", path, got, err)
	}
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inside, err := reader.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fs.ReadFile(inside, "guest"); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v", image, got, err)
	}
	if info, err := fs.Stat(inside, "guest"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%s: %v, %v", image, info, err)
	}
}
