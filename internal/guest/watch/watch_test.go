package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/guest/account"
)

// tree is a watched directory.
type tree struct {
	t *testing.T
	*Watcher
}

func watched(t *testing.T, recursive bool) *tree {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return rewatched(t, Config{Dir: dir, Recursive: recursive})
}

func rewatched(t *testing.T, c Config) *tree {
	t.Helper()
	w, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return &tree{t, w}
}

func (w *tree) do(errs ...error) {
	w.t.Helper()
	for _, err := range errs {
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *tree) path(name string) string { return filepath.Join(w.config.Dir, name) }

// expect compares what is there to take at once.
func (w *tree) expect(want string) {
	w.t.Helper()
	events, err := w.Take()
	if err != nil {
		w.t.Fatal(err)
	}
	names := map[Kind]string{Create: "create", Rename: "rename", Chmod: "chmod", Write: "write", Remove: "remove"}
	var got []string
	for _, e := range events {
		if e.Path != filepath.Join(w.config.Dir, e.Name) {
			w.t.Errorf("event %+v", e)
		}
		got = append(got, names[e.Kind]+" "+e.Name)
	}
	if s := strings.Join(got, ", "); s != want {
		w.t.Errorf("events are: %s\nwant: %s", s, want)
	}
}

func TestEventsOfOneDirectory(t *testing.T) {
	w := watched(t, false)
	w.expect("")
	w.do(os.WriteFile(w.path("f"), []byte("x"), 0o644))
	w.expect("create f, write f")
	w.do(os.Chmod(w.path("f"), 0o600))
	w.expect("chmod f")
	w.do(os.Rename(w.path("f"), w.path("g")))
	w.expect("rename f, create g")
	w.do(os.Remove(w.path("g")))
	w.expect("remove g")
	w.do(os.Mkdir(w.path("d"), 0o755), os.WriteFile(w.path("d/unseen"), nil, 0o644))
	w.expect("create d")
	w.do(os.RemoveAll(w.config.Dir))
	w.expect("remove d, remove .")
}

func TestEventsOfATree(t *testing.T) {
	w := watched(t, true)
	w.mu.Lock() // so that the directories are watched only afterwards
	w.do(os.MkdirAll(w.path("a/b/c"), 0o755), os.WriteFile(w.path("a/b/f"), []byte("x"), 0o644))
	w.mu.Unlock()
	w.expect("create a, create a/b, create a/b/c, create a/b/f")
	w.do(os.WriteFile(w.path("a/b/c/g"), []byte("x"), 0o644))
	w.expect("create a/b/c/g, write a/b/c/g")
	w.do(os.Rename(w.path("a/b"), w.path("moved")))
	w.expect("rename a/b, create moved, create moved/c, create moved/c/g, create moved/f")
	w.do(os.Truncate(w.path("moved/c/g"), 0))
	w.expect("write moved/c/g")
	outside := t.TempDir()
	w.do(os.Rename(w.path("moved"), outside+"/gone"), os.WriteFile(outside+"/gone/c/unseen", nil, 0o644))
	w.expect("rename moved")
	w.do(os.RemoveAll(w.path("a")))
	w.expect("remove a")
}

func TestExistingTreesAreWatched(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", dir+"/root"); err != nil { // must not be followed
		t.Fatal(err)
	}
	w := rewatched(t, Config{Dir: dir, Recursive: true})
	if len(w.dirs) != 3 {
		t.Errorf("%d directories are watched, want 3", len(w.dirs))
	}
	w.do(os.WriteFile(w.path("a/b/f"), nil, 0o644))
	w.expect("create a/b/f")
}

func TestReadyTells(t *testing.T) {
	w := watched(t, true)
	for i := range 100 {
		w.do(os.WriteFile(w.path(fmt.Sprint(i)), nil, 0o644))
		for got := 0; got == 0; {
			select {
			case <-w.Ready():
			case <-time.After(10 * time.Second):
				t.Fatal("it never became ready")
			}
			events, err := w.Take()
			w.do(err)
			got = len(events)
		}
	}
}

func TestTooManyEventsAreAnError(t *testing.T) {
	w := watched(t, false)
	f, err := os.Create(w.path("f"))
	w.do(err)
	defer f.Close()
	g, err := os.Create(w.path("g"))
	w.do(err)
	defer g.Close()
	for range maxPending {
		_, err1 := f.WriteString("x") // equal events in a row become one
		_, err2 := g.WriteString("x")
		w.do(err1, err2)
	}
	if events, err := w.Take(); err != nil || len(events) == 0 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	if _, err := w.Take(); !errors.Is(err, ErrOverflow) {
		t.Errorf("error = %v, want ErrOverflow", err)
	}
	select {
	case <-w.Ready():
	default:
		t.Error("whoever waits for events does not learn of the error")
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/secret", 0o700); err != nil {
		t.Fatal(err)
	}
	other := account.User{Name: "daemon", UID: 1, GID: 1}
	for name, c := range map[string]struct {
		config Config
		want   error
	}{
		"missing": {Config{Dir: dir + "/none"}, fs.ErrNotExist},
		"file":    {Config{Dir: dir + "/file"}, syscall.ENOTDIR},
		"secret":  {Config{Dir: dir + "/secret", User: other}, fs.ErrPermission},
	} {
		if w, err := New(c.config); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, w, err, c.want)
		}
	}
}

// What the user may not look into stays unseen, also when it appears later.
func TestRecursionHasTheUsersRights(t *testing.T) {
	dir, err := os.MkdirTemp("", "watch-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/before", 0o700); err != nil {
		t.Fatal(err)
	}
	w := rewatched(t, Config{Dir: dir, Recursive: true, User: account.User{Name: "daemon", UID: 1, GID: 1}})
	w.do(os.Mkdir(w.path("after"), 0o700))
	w.expect("create after")
	w.do(os.WriteFile(w.path("before/f"), nil, 0o644), os.WriteFile(w.path("after/f"), nil, 0o644))
	w.expect("")
}
