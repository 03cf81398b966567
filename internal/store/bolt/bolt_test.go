package bolt

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Open {
		path := filepath.Join(t.TempDir(), "db")
		return func() (store.Store, error) { return Open(path) }
	})
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// raw changes the file behind the store's back.
func raw(t *testing.T, path string, change func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func wantOpenError(t *testing.T, path, text string) {
	t.Helper()
	s, err := Open(path)
	if err == nil {
		t.Fatalf("opened: %v", s.Close())
	}
	if !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %q should name %q and say %q", err, path, text)
	}
}

func TestFileMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	defer s.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
}

// holder is set in the copy of the test binary that holds a store open.
const holder = "MOAT_TEST_HOLD_STORE"

func TestMain(m *testing.M) {
	if path := os.Getenv(holder); path != "" {
		os.Exit(hold(path))
	}
	os.Exit(m.Run())
}

// hold opens the store, says so and keeps it until its input ends.
func hold(path string) int {
	if _, err := Open(path); err != nil {
		return 1
	}
	os.Stdout.WriteString("open\n")
	_, _ = os.Stdin.Read(make([]byte, 1))
	return 0
}

func TestSecondProcessIsRefusedSoon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), holder+"="+path)
	release, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := said.Read(make([]byte, 5)); err != nil {
		t.Fatalf("the other process did not open the store: %v", err)
	}
	began := time.Now()
	wantOpenError(t, path, "in use by another process")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("refusal took %v", took)
	}
	// kill -9 must not leave the lock behind.
	if err := errors.Join(other.Process.Kill(), release.Close()); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait() // killed
	if err := open(t, path).Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenTwiceInOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	wantOpenError(t, path, "in use")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Close(); err != nil {
		t.Error(err)
	}
}

func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("not a database ", 2000)), 0o600); err != nil {
		t.Fatal(err)
	}
	wantOpenError(t, garbage, "invalid database")

	other := filepath.Join(dir, "other")
	raw(t, other, func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err })
	wantOpenError(t, other, "not a store of this program")

	wantOpenError(t, filepath.Join(dir, "missing", "db"), "no such file or directory")
}

func TestSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	for value, text := range map[string]string{
		strconv.Itoa(schema + 1): "written by a newer version",
		"0":                      "is not a number",
		"one":                    "is not a number",
		"":                       "is not a number",
	} {
		raw(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(schemaKey, []byte(value)) })
		wantOpenError(t, path, text)
	}
	raw(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket(metaBucket).Put(schemaKey, []byte(strconv.Itoa(schema)))
	})
	if err := open(t, path).Close(); err != nil {
		t.Error(err)
	}
}

// A file of an older program lacks buckets that came later.
func TestOlderFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	if err := s.CreateKey(t.Context(), store.Key{ID: "k", Hash: "h"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(secretBucket) })
	s = open(t, path)
	defer s.Close()
	if err := s.PutSecret(t.Context(), store.Secret{Team: "a", Name: "n", Sealed: []byte("x")}); err != nil {
		t.Error(err)
	}
	if _, err := s.KeyByHash(t.Context(), "h"); err != nil {
		t.Error(err)
	}
}

func TestCorruptRecordsAreNamed(t *testing.T) {
	for name, corrupt := range map[string]string{
		"truncated":     `{"id":"i2","te`,
		"wrong type":    `{"id":2}`,
		"unknown field": `{"id":"i2","fromTheFuture":true}`,
		"empty":         ``,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			s := open(t, path)
			for _, id := range []string{"i1", "i2"} {
				if err := s.CreateSandbox(t.Context(), store.Sandbox{ID: id, Team: "a"}); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			raw(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(sandboxBucket).Put([]byte("i2"), []byte(corrupt)) })

			s = open(t, path)
			defer s.Close()
			_, one := s.Sandbox(t.Context(), "i2")
			_, all := s.Sandboxes(t.Context(), "")
			_, team := s.Sandboxes(t.Context(), "a")
			_, update := s.UpdateSandbox(t.Context(), "i2", func(*store.Sandbox) error { return nil })
			for call, err := range map[string]error{"Sandbox": one, "Sandboxes": all, "Sandboxes of a team": team, "UpdateSandbox": update} {
				if err == nil || !strings.Contains(err.Error(), `sandbox "i2": corrupt record`) {
					t.Errorf("%s: got %v, want an error naming the record", call, err)
				}
			}
			if _, err := s.Sandbox(t.Context(), "i1"); err != nil {
				t.Errorf("the sound record: %v", err)
			}
		})
	}
}

// mountTiny mounts a file system of the given size, to fill it.
func mountTiny(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("moat-test", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func TestFullDevice(t *testing.T) {
	dir := mountTiny(t, "size=6m")
	path := filepath.Join(dir, "db")
	s := open(t, path)
	defer func() { s.Close() }()

	metadata := map[string]string{"text": strings.Repeat("x", 8<<10)}
	stored := 0
	var err error
	for ; err == nil && stored < 2000; stored++ {
		err = s.CreateSandbox(t.Context(), store.Sandbox{ID: "i" + strconv.Itoa(stored), Team: "a", Metadata: metadata})
	}
	stored-- // the last one failed
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("after %d records: got %v, want ErrFull", stored, err)
	}

	// The refused record left nothing, the others are whole, and room can be made.
	if _, err := s.Sandbox(t.Context(), "i"+strconv.Itoa(stored)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the refused record: got %v, want ErrNotFound", err)
	}
	deleted := stored - 1
	for i := range deleted {
		if err := s.DeleteSandbox(t.Context(), "i"+strconv.Itoa(i)); err != nil {
			t.Fatalf("delete on a full device: %v", err)
		}
	}
	if err := s.CreateSandbox(t.Context(), store.Sandbox{ID: "again", Team: "a"}); err != nil {
		t.Errorf("create after making room: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	all, err := s.Sandboxes(t.Context(), "a")
	if err != nil || len(all) != stored-deleted+1 {
		t.Errorf("after a restart: %d records, %v; want %d", len(all), err, stored-deleted+1)
	}
}

// TestDeleteWhenOthersFilledTheDevice: whatever the shape of the file when room
// ran out, every record can still be deleted.
func TestDeleteWhenOthersFilledTheDevice(t *testing.T) {
	for records := range 30 {
		dir := mountTiny(t, "size=8m")
		s := open(t, filepath.Join(dir, "db"))
		for i := range records {
			if err := s.CreateSandbox(t.Context(), store.Sandbox{ID: "i" + strconv.Itoa(i), Team: "a"}); err != nil {
				t.Fatal(err)
			}
		}
		fill(t, filepath.Join(dir, "somebody else's"))
		for i := range records {
			if err := s.DeleteSandbox(t.Context(), "i"+strconv.Itoa(i)); err != nil {
				t.Errorf("%d records: delete number %d: %v", records, i, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// fill writes to a new file until the device is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

func TestNoRoomToCreateTheFile(t *testing.T) {
	dir := mountTiny(t, "size=4k")
	if s, err := Open(filepath.Join(dir, "db")); !errors.Is(err, store.ErrFull) {
		t.Fatalf("got %v, %v, want ErrFull", s, err)
	}
}

func BenchmarkUpdate(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.CreateSandbox(b.Context(), store.Sandbox{ID: "i1", Team: "a"}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.UpdateSandbox(b.Context(), "i1", func(r *store.Sandbox) error { r.Generation++; return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
