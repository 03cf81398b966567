package account

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func book(t *testing.T, passwd, group string) *Book {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := open(filepath.Join(dir, "passwd"), filepath.Join(dir, "group"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUsersAreFoundWithTheirGroups(t *testing.T) {
	b := book(t,
		"# comment\nroot:x:0:0:root:/root:/bin/sh\n\nuser:x:1000:100::/home/user:/bin/bash\nhomeless:x:7:7::\nhomeless2:x:8:8:::/bin/sh\n",
		"root:x:0:\nusers:x:100:user\nsudo:x:27:root,user\ndocker:x:999:someone,user,user\nempty:x:5:\n")
	u, err := b.User("user")
	if err != nil || u.UID != 1000 || u.GID != 100 || u.Home != "/home/user" || !slices.Equal(u.Groups, []uint32{100, 27, 999}) {
		t.Errorf("user = %+v, %v", u, err)
	}
	if u, err := b.User("homeless2"); err != nil || u.Home != "/" {
		t.Errorf("homeless2 = %+v, %v", u, err)
	}
	for _, name := range []string{"", "nobody", "# comment", "1000", "user:x"} {
		if u, err := b.User(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q = %+v, %v; want ErrUnknown", name, u, err)
		}
	}
	for uid, name := range map[uint32]string{0: "root", 1000: "user", 4711: "4711"} {
		if got := b.UserName(uid); got != name {
			t.Errorf("user %d is %q, want %q", uid, got, name)
		}
	}
	if got := b.GroupName(27) + " " + b.GroupName(28); got != "sudo 28" {
		t.Errorf("groups are %q", got)
	}
}

// An id of -1 would leave the thread's id unchanged: root.
func TestBrokenIDsAreNoUsers(t *testing.T) {
	for _, id := range []string{"4294967295", "-1", "4294967296", "", "0x0", " 0", "1e3"} {
		b := book(t, "u:x:"+id+":1::/:\nv:x:1:"+id+"::/:\n", "g:x:"+id+":u,v\n")
		for _, name := range []string{"u", "v"} {
			if u, err := b.User(name); !errors.Is(err, ErrUnknown) {
				t.Errorf("id %q: %s = %+v, %v", id, name, u, err)
			}
		}
	}
}

func TestWithoutFilesThereIsOnlyRoot(t *testing.T) {
	b, err := open("/no/such/passwd", "/no/such/group")
	if err != nil {
		t.Fatal(err)
	}
	if u, err := b.User(Root); err != nil || u.UID != 0 || u.Home != "/root" {
		t.Errorf("root = %+v, %v", u, err)
	}
	if _, err := b.User("user"); !errors.Is(err, ErrUnknown) {
		t.Errorf("error = %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add("root:x:0:0::/root:\n", "root:x:0:a,b\n")
	f.Add("u:x:4294967295:0:::\n:::::::\n", "g:::\n")
	f.Fuzz(func(t *testing.T, passwd, group string) {
		dir := t.TempDir()
		for name, content := range map[string]string{"p": passwd, "g": group} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b, err := open(filepath.Join(dir, "p"), filepath.Join(dir, "g"))
		if err != nil {
			return
		}
		for _, known := range b.users {
			u, err := b.User(known.Name)
			if err != nil || u.UID == 1<<32-1 || u.GID == 1<<32-1 || slices.Contains(u.Groups, 1<<32-1) || len(u.Groups) == 0 || u.Groups[0] != u.GID {
				t.Fatalf("user %q = %+v, %v", known.Name, u, err)
			}
		}
	})
}
