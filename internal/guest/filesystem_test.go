package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	pb "github.com/moat-sandbox/moat/api/filesystem"
)

func paths(entries []*pb.EntryInfo) []string {
	var all []string
	for _, e := range entries {
		all = append(all, e.GetPath())
	}
	return all
}

func TestEntries(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir})
	if err := os.WriteFile(dir+"/f", []byte("12345"), 0o640); err != nil {
		t.Fatal(err)
	}
	when := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, err := range []error{
		os.Chown(dir+"/f", 1, 65432), os.Chtimes(dir+"/f", when, when), os.Mkdir(dir+"/d", 0o755),
		os.Symlink("f", dir+"/link"), os.Symlink("/no/such", dir+"/broken"), syscall.Mkfifo(dir+"/fifo", 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, codec := range codecs {
		c := d.filesystem(nil, codec...)
		stat := func(path string) *pb.EntryInfo {
			res, err := c.Stat(t.Context(), &pb.StatRequest{Path: path})
			if err != nil {
				t.Fatalf("%s: stat %s: %v", name, path, err)
			}
			return res.GetEntry()
		}
		e := stat("f")
		if e.GetName() != "f" || e.GetPath() != dir+"/f" || e.GetType() != pb.FileType_FILE_TYPE_FILE || e.GetSize() != 5 || e.GetMode() != 0o640 ||
			e.GetPermissions() != "-rw-r-----" || e.GetOwner() != "daemon" || e.GetGroup() != "65432" || !e.GetModifiedTime().AsTime().Equal(when) || e.SymlinkTarget != nil {
			t.Errorf("%s: file = %v", name, e)
		}
		if e := stat("d"); e.GetType() != pb.FileType_FILE_TYPE_DIRECTORY || e.GetPermissions() != "drwxr-xr-x" {
			t.Errorf("%s: directory = %v", name, e)
		}
		if e := stat("link"); e.GetType() != pb.FileType_FILE_TYPE_FILE || e.GetMode() != 0o640 || e.GetSymlinkTarget() != dir+"/f" {
			t.Errorf("%s: link = %v", name, e)
		}
		if e := stat("broken"); e.GetType() != pb.FileType_FILE_TYPE_UNSPECIFIED || e.GetSymlinkTarget() != dir+"/broken" {
			t.Errorf("%s: broken link = %v", name, e)
		}
		if e := stat("fifo"); e.GetType() != pb.FileType_FILE_TYPE_UNSPECIFIED {
			t.Errorf("%s: pipe = %v", name, e)
		}
	}
}

func TestListDir(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir})
	c := d.filesystem(nil)
	for _, path := range []string{"b/1/x/deep", "b/2", "a", "c/secret/inside"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir+"/c/secret", 0o700); err != nil { // root's
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/b", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	list := func(path string, depth uint32) []string {
		res, err := c.ListDir(t.Context(), &pb.ListDirRequest{Path: path, Depth: depth})
		if err != nil {
			t.Fatalf("list %s: %v", path, err)
		}
		var names []string
		for _, p := range paths(res.GetEntries()) {
			names = append(names, strings.TrimPrefix(p, dir+"/"))
		}
		return names
	}
	for _, x := range []struct {
		path  string
		depth uint32
		want  string
	}{
		{".", 0, "a b c link"},
		{".", 1, "a b c link"},
		{"", 2, "a b b/1 b/2 c c/secret link"},
		{"~/../.." + dir, 9, "a b b/1 b/1/x b/1/x/deep b/2 c c/secret link"},
		{"link", 2, "link/1 link/1/x link/2"},
	} {
		if got := strings.Join(list(x.path, x.depth), " "); got != x.want {
			t.Errorf("list %q to depth %d = %s, want %s", x.path, x.depth, got, x.want)
		}
	}
	_, err := c.ListDir(t.Context(), &pb.ListDirRequest{Path: "none"})
	wantCode(t, err, connect.CodeNotFound, "none")
	_, err = c.ListDir(t.Context(), &pb.ListDirRequest{Path: "/etc/passwd"})
	wantCode(t, err, connect.CodeInvalidArgument, "not a directory")
	_, err = c.ListDir(t.Context(), &pb.ListDirRequest{Path: "c/secret"})
	wantCode(t, err, connect.CodePermissionDenied, "permission denied")
}

func TestMakeMoveRemove(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir})
	c := d.filesystem(nil)
	made, err := c.MakeDir(t.Context(), &pb.MakeDirRequest{Path: "x/y/z"})
	if err != nil || made.GetEntry().GetPath() != dir+"/x/y/z" || made.GetEntry().GetOwner() != "daemon" {
		t.Fatalf("make = %v, %v", made, err)
	}
	_, err = c.MakeDir(t.Context(), &pb.MakeDirRequest{Path: "x/y"})
	wantCode(t, err, connect.CodeAlreadyExists, "exists")
	_, err = c.MakeDir(t.Context(), &pb.MakeDirRequest{Path: "/etc/passwd"})
	wantCode(t, err, connect.CodeInvalidArgument, "not a directory")
	_, err = c.MakeDir(t.Context(), &pb.MakeDirRequest{Path: "/etc/evil"})
	wantCode(t, err, connect.CodePermissionDenied, "permission denied")

	moved, err := c.Move(t.Context(), &pb.MoveRequest{Source: "x/y", Destination: "new/place/y"})
	if err != nil || moved.GetEntry().GetPath() != dir+"/new/place/y" {
		t.Fatalf("move = %v, %v", moved, err)
	}
	if _, err := os.Stat(dir + "/new/place/y/z"); err != nil {
		t.Error(err)
	}
	_, err = c.Move(t.Context(), &pb.MoveRequest{Source: "gone", Destination: "would/be/made"})
	wantCode(t, err, connect.CodeNotFound, "gone")
	if _, err := os.Stat(dir + "/would"); err == nil {
		t.Error("a failed move left directories behind")
	}
	_, err = c.Move(t.Context(), &pb.MoveRequest{Source: "/etc/hostname", Destination: "mine"})
	wantCode(t, err, connect.CodePermissionDenied, "permission denied")

	for range 2 { // the second time it is gone, which is fine
		if _, err := c.Remove(t.Context(), &pb.RemoveRequest{Path: "new"}); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dir + "/new"); err == nil {
		t.Error("it was not removed")
	}
	_, err = c.Remove(t.Context(), &pb.RemoveRequest{Path: "/etc/passwd"})
	wantCode(t, err, connect.CodePermissionDenied, "permission denied")
	_, err = d.filesystem(as("root")).Remove(t.Context(), &pb.RemoveRequest{Path: "/../."})
	wantCode(t, err, connect.CodeInvalidArgument, "root directory")
}

// A sandbox's /tmp is often another file system than the rest.
func TestMoveToAnotherFileSystem(t *testing.T) {
	from, to := openDir(t, 1, 1), openDir(t, 0, 0)
	if err := syscall.Mount("tmpfs", to, "tmpfs", 0, "size=1m,uid=1,gid=1,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(to, 0); err != nil {
			t.Error(err)
		}
	})
	d := ready(t, api.GuestInit{DefaultUser: "daemon"})
	c := d.filesystem(nil)
	when := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, err := range []error{
		os.MkdirAll(from+"/tree/sub", 0o750), os.WriteFile(from+"/tree/sub/f", []byte("content"), 0o751), os.Symlink("sub/f", from+"/tree/link"),
		os.Chtimes(from+"/tree/sub/f", when, when),
		os.Lchown(from+"/tree", 1, 1), os.Lchown(from+"/tree/sub", 1, 1), os.Lchown(from+"/tree/sub/f", 1, 1), os.Lchown(from+"/tree/link", 1, 1),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Move(t.Context(), &pb.MoveRequest{Source: from + "/tree", Destination: to + "/a/tree"}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(to + "/a/tree/sub/f")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o751 || !info.ModTime().Equal(when) || info.Sys().(*syscall.Stat_t).Uid != 1 {
		t.Errorf("file is %v of %v", info.Mode(), info.ModTime())
	}
	if target, err := os.Readlink(to + "/a/tree/link"); err != nil || target != "sub/f" {
		t.Errorf("link leads to %q, %v", target, err)
	}
	if _, err := os.Lstat(from + "/tree"); err == nil {
		t.Error("the source is still there")
	}
	// What does not fit leaves the source whole and the destination untouched.
	if err := os.WriteFile(from+"/big", make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = c.Move(t.Context(), &pb.MoveRequest{Source: from + "/big", Destination: to + "/big"})
	wantCode(t, err, connect.CodeResourceExhausted, "no space")
	if info, err := os.Stat(from + "/big"); err != nil || info.Size() != 4<<20 {
		t.Errorf("the source is %v, %v", info, err)
	}
	if left, err := os.ReadDir(to); err != nil || len(left) != 1 {
		t.Errorf("the destination holds %v, %v", left, err)
	}
}

func TestWatchDir(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir})
	for name, codec := range codecs {
		c := d.filesystem(map[string]string{"Keepalive-Ping-Interval": "1"}, codec...)
		stream, err := c.WatchDir(t.Context(), &pb.WatchDirRequest{Path: ".", Recursive: true, IncludeEntry: true})
		if err != nil {
			t.Fatal(err)
		}
		if !stream.Receive() || stream.Msg().GetStart() == nil {
			t.Fatalf("%s: first message = %v, %v", name, stream.Msg(), stream.Err())
		}
		if !stream.Receive() || stream.Msg().GetKeepalive() == nil {
			t.Fatalf("%s: second message = %v, %v", name, stream.Msg(), stream.Err())
		}
		if err := os.MkdirAll(filepath.Join(dir, name, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		want := []string{name, name + "/sub"}
		for len(want) > 0 && stream.Receive() {
			e := stream.Msg().GetFilesystem()
			if e == nil {
				continue
			}
			if e.GetType() != pb.EventType_EVENT_TYPE_CREATE || e.GetEntry().GetPath() != filepath.Join(dir, e.GetName()) {
				t.Errorf("%s: event = %v", name, e)
			}
			want = slices.DeleteFunc(want, func(n string) bool { return n == e.GetName() })
		}
		if len(want) > 0 {
			t.Errorf("%s: never heard of %v: %v", name, want, stream.Err())
		}
		_ = stream.Close()
	}
}

func TestPolledWatcher(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir})
	c := d.filesystem(nil)
	made, err := c.CreateWatcher(t.Context(), &pb.CreateWatcherRequest{Path: "."})
	if err != nil || !strings.HasPrefix(made.GetWatcherId(), "w") {
		t.Fatalf("create = %v, %v", made, err)
	}
	poll := func() string {
		res, err := c.GetWatcherEvents(t.Context(), &pb.GetWatcherEventsRequest{WatcherId: made.GetWatcherId()})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, e := range res.GetEvents() {
			if e.Entry != nil {
				t.Errorf("entry of %v was not asked for", e)
			}
			all = append(all, e.GetName()+":"+strings.TrimPrefix(e.GetType().String(), "EVENT_TYPE_"))
		}
		return strings.Join(all, " ")
	}
	for i := range 50 { // what is written is there at once, every time
		if err := os.WriteFile(dir+"/f", []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := poll(); !strings.Contains(got, "f:WRITE") {
			t.Fatalf("round %d: events = %q", i, got)
		}
	}
	if err := os.Remove(dir + "/f"); err != nil {
		t.Fatal(err)
	}
	if got := poll(); !strings.HasSuffix(got, "f:REMOVE") {
		t.Errorf("events = %q", got)
	}
	if got := poll(); got != "" {
		t.Errorf("events came twice: %q", got)
	}
	for i := range 2 {
		_, err := c.RemoveWatcher(t.Context(), &pb.RemoveWatcherRequest{WatcherId: made.GetWatcherId()})
		if i == 0 && err != nil {
			t.Error(err)
		} else if i == 1 {
			wantCode(t, err, connect.CodeNotFound, "not found")
		}
	}
	_, err = c.GetWatcherEvents(t.Context(), &pb.GetWatcherEventsRequest{WatcherId: made.GetWatcherId()})
	wantCode(t, err, connect.CodeNotFound, "not found")
}

func TestWatchRefusals(t *testing.T) {
	dir := openDir(t, 1, 1)
	c := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir}).filesystem(nil)
	for path, code := range map[string]connect.Code{
		"none": connect.CodeNotFound, "/etc/passwd": connect.CodeInvalidArgument, "/root": connect.CodePermissionDenied,
	} {
		_, err := c.CreateWatcher(t.Context(), &pb.CreateWatcherRequest{Path: path})
		wantCode(t, err, code, path)
	}
	for n := range 300 {
		_, err := c.CreateWatcher(t.Context(), &pb.CreateWatcherRequest{Path: "."})
		if err != nil {
			if wantCode(t, err, connect.CodeResourceExhausted, "watch"); n < 100 {
				t.Errorf("only %d watchers could be made", n)
			}
			return
		}
	}
	t.Error("watchers are unbounded")
}
