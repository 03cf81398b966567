package rootfs

import (
	"archive/tar"
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func complete(t *testing.T, b *Builder, in Defaults) Defaults {
	t.Helper()
	out, err := b.Complete(in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(t *testing.T, b *Builder, name string) string {
	t.Helper()
	data, err := b.readFile(name)
	if err != nil {
		t.Fatalf("/%s: %v", name, err)
	}
	return string(data)
}

func TestCompleteAnEmptyTree(t *testing.T) {
	b, _ := newBuilder(t)
	if got := complete(t, b, Defaults{}); got != (Defaults{User: "user", Workdir: "/home/user"}) {
		t.Errorf("defaults %+v", got)
	}
	for name, mode := range map[string]uint16{
		"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "etc": 0o755, "root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777,
		".moat": 0o755, "home/user": 0o755,
	} {
		node, err := b.lookup(name)
		if err != nil || node.Mode != unix.S_IFDIR|mode {
			t.Errorf("/%s: %+v, %v; want mode %#o", name, node, err, mode)
		}
	}
	if got := read(t, b, "etc/passwd"); got != "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n" {
		t.Errorf("passwd %q", got)
	}
	if node, err := b.lookup("etc/shadow"); err != nil || node.Mode != unix.S_IFREG|0o600 {
		t.Errorf("shadow: %+v, %v", node, err)
	}
	if node, err := b.lookup("home/user/.bashrc"); err != nil || node.UID != 1000 {
		t.Errorf(".bashrc: %+v, %v", node, err)
	}
	if b.Exists("etc/sudoers") {
		t.Error("sudoers without sudo")
	}
}

func TestCompleteKeepsWhatIsThere(t *testing.T) {
	b, _ := newBuilder(t)
	addLayers(t, b, []tar.Header{
		{Name: "etc/passwd", Mode: 0o600, Uid: 9, PAXRecords: map[string]string{"content": "root:x:0:0::/root:/bin/ash\nnode:x:1000:1000::/home/node:/bin/sh\n"}},
		file("etc/group", "node:x:1000:\n"), file("etc/hosts", "mine"), file("usr/bin/sudo", "x"), symlink("bin", "usr/bin"), file("bin/bash", "x"),
		file("etc/sudoers", "@includedir /etc/sudoers.d"), {Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o700},
		dir("home/user"), file("home/user/mine", "x"),
	})
	if got := complete(t, b, Defaults{User: "node", Workdir: "/app/"}); got != (Defaults{User: "node", Workdir: "/app"}) {
		t.Errorf("defaults %+v", got)
	}
	if got := read(t, b, "etc/passwd"); !strings.HasPrefix(got, "root:x:0:0::/root:/bin/ash\nnode:") || !strings.HasSuffix(got, "user:x:1001:1001::/home/user:/bin/bash\n") {
		t.Errorf("passwd %q", got)
	}
	if node, _ := b.lookup("etc/passwd"); node.Mode != unix.S_IFREG|0o600 || node.UID != 9 {
		t.Errorf("passwd became %+v", node)
	}
	if read(t, b, "etc/hosts") != "mine" || b.Exists("home/user/.bashrc") {
		t.Error("existing files were changed")
	}
	if got := read(t, b, "etc/sudoers"); got != "@includedir /etc/sudoers.d\nuser ALL=(ALL:ALL) NOPASSWD: ALL\n" {
		t.Errorf("sudoers %q", got)
	}
	if app, err := b.lookup("app"); err != nil || app.UID != 1000 {
		t.Errorf("/app: %+v, %v", app, err)
	}
	before := dump(t, b)
	complete(t, b, Defaults{User: "node", Workdir: "/app/"})
	if !slices.Equal(dump(t, b), before) {
		t.Error("completing twice changes something")
	}
}

func TestUserOfAnImage(t *testing.T) {
	passwd := "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv/www:/bin/sh\n"
	for in, want := range map[Defaults]Defaults{
		{User: "web"}:                      {User: "web", Workdir: "/srv/www"},
		{User: "web:web", Workdir: "/"}:    {User: "web", Workdir: "/srv/www"},
		{User: "33:0", Workdir: "/x/../y"}: {User: "web", Workdir: "/y"},
		{User: "0"}:                        {User: "root", Workdir: "/root"},
		{User: "root"}:                     {User: "root", Workdir: "/root"},
		{User: "65532"}:                    {User: "u65532", Workdir: "/"},
		{}:                                 {User: "user", Workdir: "/home/user"},
	} {
		b, _ := newBuilder(t)
		addLayers(t, b, []tar.Header{file("etc/passwd", passwd)})
		if got := complete(t, b, in); got != want {
			t.Errorf("%+v gave %+v, want %+v", in, got, want)
		}
		if !strings.Contains(read(t, b, "etc/passwd"), want.User+":x:") {
			t.Errorf("%+v: nobody is called %s", in, want.User)
		}
	}
	b, _ := newBuilder(t)
	if _, err := b.Complete(Defaults{User: "ghost"}); err == nil {
		t.Error("an unknown user was accepted")
	}
}

func TestCompleteRefuses(t *testing.T) {
	cases := map[string][]tar.Header{
		"file for a mount point":    {file("proc", "x")},
		"directory for passwd":      {dir("etc/passwd")},
		"passwd too large":          {file("etc/passwd", strings.Repeat("x\n", maxText))},
		"passwd in a loop":          {symlink("etc/passwd", "passwd")},
		"file for the home":         {file("home", "x")},
		"etc is a link in circles":  {symlink("etc", "etc")},
		"sudoers is a pipe":         {file("usr/bin/sudo", "x"), {Name: "etc/sudoers", Typeflag: tar.TypeFifo}},
		"working directory is file": {file("work", "x")},
	}
	for name, headers := range cases {
		b, _ := newBuilder(t)
		addLayers(t, b, headers)
		if _, err := b.Complete(Defaults{Workdir: "/work"}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestCompleteFollowsLinksInside: /etc/passwd of an image may be a link; it is
// followed inside the image only.
func TestCompleteFollowsLinksInside(t *testing.T) {
	b, _ := newBuilder(t)
	addLayers(t, b, []tar.Header{symlink("etc", "/../../conf"), symlink("conf/passwd", "/../real/passwd"), file("real/passwd", "a:x:1:1::/:/bin/sh\n")})
	complete(t, b, Defaults{})
	if got := read(t, b, "real/passwd"); !strings.Contains(got, "user:x:1000") {
		t.Errorf("passwd %q", got)
	}
	host, err := os.ReadFile("/etc/passwd")
	if err != nil || strings.Contains(string(host), "user:x:1000:1000::/home/user") {
		t.Errorf("the host's account file changed (%v)", err)
	}
}

// FuzzAddLayer: whatever bytes a registry sends, the tree stays inside its
// limits and the image can be written.
func FuzzAddLayer(f *testing.F) {
	seeds := [][]tar.Header{
		{file("a/x", "1"), hardlink("b", "a/x"), symlink("l", "a"), file("l/y", "2"), file("a/.wh.x", "")},
		{dir("d"), file("d/.wh..wh..opq", ""), {Name: "p", Typeflag: tar.TypeFifo}, {Name: "n", Typeflag: tar.TypeChar}},
		{symlink("etc", "/x/../.."), file("etc/passwd", "root:x:0:0:::\n")},
	}
	for _, headers := range seeds {
		b := make([]byte, 1<<16)
		n, _ := archive(f, headers...).Read(b)
		f.Add(b[:n], b[:n])
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		b, image := newBuilder(t)
		for _, layer := range [][]byte{first, second} {
			if err := b.AddLayer(context.Background(), strings.NewReader(string(layer))); err != nil {
				return
			}
		}
		if _, err := b.Complete(Defaults{}); err != nil {
			return
		}
		checkImage(t, b, image)
	})
}
