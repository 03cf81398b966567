package account

import (
	"strings"
	"testing"
)

func TestEnsure(t *testing.T) {
	cases := []struct {
		name          string
		passwd, group string
		want          User
		wantGroup     string // a line the group file must have
	}{
		{"nobody there", "", "", User{Default, 1000, 1000, DefaultHome}, "user:x:1000:"},
		{"1000 is a user", "node:x:1000:1000::/home/node:/bin/sh\n", "node:x:1000:\n", User{Default, 1001, 1001, DefaultHome}, "user:x:1001:"},
		{"1000 is only a group", "", "staff:x:1000:\n", User{Default, 1001, 1001, DefaultHome}, "user:x:1001:"},
		{"no newline at the end", "a:x:1:1::/:/bin/sh", "a:x:1:", User{Default, 1000, 1000, DefaultHome}, "user:x:1000:"},
		{"group of that name", "", "user:x:50:\n", User{Default, 1000, 50, DefaultHome}, "user:x:50:"},
		{"already there", "user:x:7:8:Jo:/srv/jo:/bin/zsh\n", "", User{Default, 7, 8, "/srv/jo"}, ""},
		{"nonsense is skipped", "::::\nuser:x:x:x::/:\nuser\n\x00\n", "user:x:no:\n", User{Default, 1000, 1000, DefaultHome}, "user:x:1000:"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := Files{Passwd: c.passwd, Group: c.group}
			if got := f.Ensure(Default, DefaultHome, "/bin/bash"); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if !strings.Contains("\n"+f.Group, "\n"+c.wantGroup) {
				t.Errorf("group file has no %q:\n%s", c.wantGroup, f.Group)
			}
			if !strings.HasPrefix(f.Passwd, strings.TrimSuffix(c.passwd, "\n")) {
				t.Errorf("existing lines changed:\n%s", f.Passwd)
			}
			again := f
			if got := again.Ensure(Default, DefaultHome, "/bin/bash"); got != c.want || again != f {
				t.Errorf("a second time: %+v, files %+v", got, again)
			}
			if !strings.Contains(f.Shadow, "user:*:") {
				t.Errorf("password not locked: %q", f.Shadow)
			}
		})
	}
}

func TestEnsureKeepsAPassword(t *testing.T) {
	f := Files{Passwd: "user:x:1000:1000::/home/user:/bin/sh\n", Shadow: "user:$6$hash:1::::::\n"}
	f.Ensure(Default, DefaultHome, "/bin/sh")
	if f.Shadow != "user:$6$hash:1::::::\n" {
		t.Errorf("shadow became %q", f.Shadow)
	}
}

func TestEnsureRoot(t *testing.T) {
	f := Files{Passwd: "a:x:1:1::/:/bin/sh\n"}
	f.EnsureRoot("/bin/sh")
	if u, ok := f.Lookup("root"); !ok || u.UID != 0 || u.Home != "/root" {
		t.Fatalf("root is %+v, %v", u, ok)
	}
	if u, ok := f.LookupID(0); !ok || u.Name != "root" {
		t.Fatalf("user 0 is %+v, %v", u, ok)
	}
	before := f
	f.EnsureRoot("/bin/sh")
	if f != before {
		t.Fatal("a second time changed something")
	}
}
