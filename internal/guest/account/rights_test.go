package account

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// identity is what the kernel knows of the calling thread.
func identity() string {
	groups, err := unix.Getgroups()
	if err != nil {
		return err.Error()
	}
	r, e, s := unix.Getresuid()
	_, eg, _ := unix.Getresgid()
	return fmt.Sprint(r, e, s, eg, groups)
}

var daemonUser = User{Name: "daemon", UID: 1, GID: 1, Groups: []uint32{1, 60, 61}}

func TestDoActsAsTheUser(t *testing.T) {
	dir, err := os.MkdirTemp("", "rights-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	secret, shared := filepath.Join(dir, "secret"), filepath.Join(dir, "shared")
	for _, err := range []error{
		os.Chmod(dir, 0o777), os.WriteFile(secret, []byte("x"), 0o600),
		os.WriteFile(shared, []byte("for a group"), 0o640), os.Chown(shared, 0, 61),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	err = daemonUser.Do(func() error {
		if got := identity(); got != "0 1 0 1 [1 60 61]" {
			t.Errorf("inside, the thread is %s", got)
		}
		if _, err := os.ReadFile(secret); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("reading root's file: %v", err)
		}
		if err := os.Chown(shared, 1, 1); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("taking a file: %v", err)
		}
		if _, err := os.ReadFile(shared); err != nil {
			t.Errorf("reading by a supplementary group: %v", err)
		}
		if err := syscall.Mkdir("/moat-test-dir", 0o755); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("making a directory in /: %v", err)
		}
		return os.WriteFile(filepath.Join(dir, "mine"), nil, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "mine"))
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 1 || stat.Gid != 1 {
		t.Errorf("the new file is %d:%d's", stat.Uid, stat.Gid)
	}
}

func TestDoReturnsErrorsAndSurvivesPanics(t *testing.T) {
	want := errors.New("mine")
	if err := daemonUser.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error = %v", err)
	}
	if err := (User{}).Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error = %v", err)
	}
	err := daemonUser.Do(func() error { panic("oops") })
	if err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("error = %v", err)
	}
}

// No thread may keep a user's rights, and none may lose its own while others
// change theirs.
func TestRightsStayWithTheirThread(t *testing.T) {
	before := identity()
	var all sync.WaitGroup
	for i := range 8 {
		u := User{UID: uint32(100 + i), GID: uint32(200 + i), Groups: []uint32{uint32(300 + i)}}
		inside := fmt.Sprint(0, u.UID, 0, u.GID, u.Groups)
		all.Go(func() {
			for n := range 200 {
				err := u.Do(func() error {
					if got := identity(); got != inside {
						return fmt.Errorf("inside, the thread is %s, want %s", got, inside)
					}
					if n%50 == 0 {
						panic("on purpose")
					}
					return nil
				})
				if err != nil && n%50 != 0 {
					t.Error(err)
				}
			}
		})
		all.Go(func() {
			for range 1000 {
				if r, e, s := unix.Getresuid(); r != 0 || e != 0 || s != 0 {
					t.Errorf("another thread is %d %d %d", r, e, s)
					return
				}
			}
		})
	}
	all.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err == nil && !strings.Contains(string(status), "\nUid:\t0\t0\t0\t0\n") {
			t.Errorf("%s:\n%s", task, status)
		}
	}
	if after := identity(); after != before && after != "0 0 0 0 []" {
		t.Errorf("the test's thread was %s and is %s", before, after)
	}
}
