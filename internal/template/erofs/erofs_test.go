package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	reader "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
	sentry "gvisor.dev/gvisor/pkg/erofs"
)

const testLimit = 1 << 30

// tree builds an image; every file keeps what it should hold.
type tree struct {
	t     *testing.T
	file  *os.File
	w     *Writer
	root  *Node
	holds map[*Node][]byte
}

func newTree(t *testing.T) *tree {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := NewWriter(f, testLimit)
	if err != nil {
		t.Fatal(err)
	}
	return &tree{t: t, file: f, w: w, root: dir(0o755), holds: map[*Node][]byte{}}
}

func dir(perm uint16) *Node {
	return &Node{Mode: unix.S_IFDIR | perm, Children: map[string]*Node{}}
}

func link(target string) *Node { return &Node{Mode: unix.S_IFLNK | 0o777, Target: target} }

func (tr *tree) regular(data []byte) *Node {
	tr.t.Helper()
	ext, err := tr.w.Append(bytes.NewReader(data))
	if err != nil {
		tr.t.Fatal(err)
	}
	n := &Node{Mode: unix.S_IFREG | 0o644, Data: ext, Mtime: time.Unix(1700000000, 12345)}
	tr.holds[n] = data
	return n
}

func (tr *tree) finish() {
	tr.t.Helper()
	if err := tr.w.Finish(tr.root); err != nil {
		tr.t.Fatal(err)
	}
}

// check compares the finished image with the tree, through both readers.
func (tr *tree) check() {
	tr.t.Helper()
	image, err := reader.Open(tr.file)
	if err != nil {
		tr.t.Fatalf("go-erofs: %v", err)
	}
	f, err := os.Open(tr.file.Name())
	if err != nil {
		tr.t.Fatal(err)
	}
	guest, err := sentry.OpenImage(f)
	if err != nil {
		tr.t.Fatalf("gVisor: %v", err)
	}
	defer guest.Close()
	top, err := guest.Inode(guest.RootNid())
	if err != nil {
		tr.t.Fatalf("gVisor: root: %v", err)
	}
	tr.checkNode(image, guest, top, ".", tr.root)
}

func (tr *tree) checkNode(image fs.FS, guest *sentry.Image, ino sentry.Inode, name string, want *Node) {
	tr.t.Helper()
	if ino.Mode() != want.Mode || ino.UID() != want.UID || ino.GID() != want.GID {
		tr.t.Errorf("%s: mode %#o owner %d:%d, want %#o %d:%d", name, ino.Mode(), ino.UID(), ino.GID(), want.Mode, want.UID, want.GID)
	}
	if !want.Mtime.IsZero() && (ino.Mtime() != uint64(want.Mtime.Unix()) || ino.MtimeNsec() != uint32(want.Mtime.Nanosecond())) {
		tr.t.Errorf("%s: mtime %d.%d, want %v", name, ino.Mtime(), ino.MtimeNsec(), want.Mtime)
	}
	switch {
	case want.IsRegular():
		if got, err := fs.ReadFile(image, name); err != nil || !bytes.Equal(got, tr.holds[want]) {
			tr.t.Errorf("%s: read %d bytes, %v; want %d", name, len(got), err, len(tr.holds[want]))
		}
		// What mmap and exec need: plain data at a block.
		off, err := ino.DataOffset()
		if err != nil || off%BlockSize != 0 {
			tr.t.Errorf("%s: gVisor cannot map it: offset %d, %v", name, off, err)
		}
		if got, err := guest.BytesAt(off, ino.Size()); ino.Size() > 0 && (err != nil || !bytes.Equal(got, tr.holds[want])) {
			tr.t.Errorf("%s: gVisor reads something else: %v", name, err)
		}
	case want.IsSymlink():
		if got, err := ino.Readlink(); err != nil || got != want.Target {
			tr.t.Errorf("%s: gVisor readlink %q, %v; want %q", name, got, err, want.Target)
		}
	case want.IsDir():
		tr.checkDir(image, guest, ino, name, want)
	}
}

func (tr *tree) checkDir(image fs.FS, guest *sentry.Image, ino sentry.Inode, name string, want *Node) {
	tr.t.Helper()
	var seen []string
	subdirs := uint32(0)
	err := ino.IterDirents(func(entry string, _ uint8, _ uint64) error {
		seen = append(seen, entry)
		return nil
	})
	if err != nil || len(seen) != len(want.Children)+2 {
		tr.t.Errorf("%s: gVisor lists %d entries, %v; want %d", name, len(seen), err, len(want.Children)+2)
	}
	entries, err := fs.ReadDir(image, name)
	if err != nil || len(entries) != len(want.Children) {
		tr.t.Errorf("%s: go-erofs lists %d entries, %v; want %d", name, len(entries), err, len(want.Children))
	}
	for entry, child := range want.Children {
		if child.IsDir() {
			subdirs++
		}
		nid, err := ino.Lookup(entry)
		if err != nil {
			tr.t.Errorf("%s: lookup %q: %v", name, entry, err)
			continue
		}
		next, err := guest.Inode(nid)
		if err != nil {
			tr.t.Errorf("%s/%s: %v", name, entry, err)
			continue
		}
		tr.checkNode(image, guest, next, path.Join(name, entry), child)
	}
	if ino.Nlink() != 2+subdirs {
		tr.t.Errorf("%s: link count %d, want %d", name, ino.Nlink(), 2+subdirs)
	}
	if _, err := ino.Lookup("no such entry"); err == nil {
		tr.t.Errorf("%s: found what is not there", name)
	}
}

func TestImageHoldsItsTree(t *testing.T) {
	tr := newTree(t)
	etc := dir(0o700)
	etc.UID, etc.GID, etc.Mtime = 70000, 4_000_000_000, time.Unix(1, 2)
	shared := tr.regular([]byte("two names"))
	tr.root.Children = map[string]*Node{
		"etc":      etc,
		"empty":    tr.regular(nil),
		"one":      tr.regular([]byte{1}),
		"block":    tr.regular(bytes.Repeat([]byte{2}, BlockSize)),
		"more":     tr.regular(bytes.Repeat([]byte{3}, BlockSize+1)),
		"chunks":   tr.regular(bytes.Repeat([]byte{4}, 3*chunkSize+7)),
		"zeros":    tr.regular(make([]byte, 2*chunkSize+1)),
		"suid":     tr.regular([]byte("x")),
		"pipe":     {Mode: unix.S_IFIFO | 0o600},
		"short":    link("etc"),
		"long":     link(strings.Repeat("x", maxInline+1)),
		"longest":  link(strings.Repeat("y", MaxTarget)),
		"shared":   shared,
		"-before.": tr.regular([]byte("sorts before the dot")),
		"empty.d":  dir(0o755),
	}
	tr.root.Children["suid"].Mode |= unix.S_ISUID
	etc.Children["shared too"] = shared
	etc.Children[strings.Repeat("n", MaxName)] = tr.regular([]byte("longest name"))
	tr.finish()
	tr.check()
}

func TestDirectoriesOfEverySize(t *testing.T) {
	for _, entries := range []int{0, 1, 50, 60, 63, 64, 100, 203, 204, 205, 1000, 5000} {
		t.Run(fmt.Sprint(entries), func(t *testing.T) {
			tr := newTree(t)
			big := dir(0o755)
			tr.root.Children["big"] = big
			file := tr.regular([]byte("same"))
			for i := range entries {
				big.Children[fmt.Sprintf("entry-%03x", i)] = file
			}
			if entries == 0 {
				tr.root.Children["file"] = file
			}
			tr.finish()
			tr.check()
		})
	}
}

// TestDirectoryThatFillsItsBlocks: the last block of a directory may be full to
// the byte, where a reader sees no partial tail.
func TestDirectoryThatFillsItsBlocks(t *testing.T) {
	tr := newTree(t)
	big := dir(0o755)
	tr.root.Children["big"] = big
	// "." and ".." take 27 bytes; 15 entries of 255 bytes 4005; 64 remain.
	for i := range 15 {
		big.Children[fmt.Sprintf("%c%s", 'a'+i, strings.Repeat("n", MaxName-1))] = link("t")
	}
	big.Children[strings.Repeat("z", 4096-27-15*(direntSize+MaxName)-direntSize)] = link("t")
	if size := directorySize(big); size != BlockSize {
		t.Fatalf("directory has %d bytes, the case needs %d", size, BlockSize)
	}
	tr.finish()
	tr.check()
}

func TestHardLinksShareOneInode(t *testing.T) {
	tr := newTree(t)
	n := tr.regular([]byte("content"))
	tr.root.Children["a"], tr.root.Children["b"] = n, n
	tr.root.Children["d"] = dir(0o755)
	tr.root.Children["d"].Children["c"] = n
	tr.finish()
	f, err := os.Open(tr.file.Name())
	if err != nil {
		t.Fatal(err)
	}
	image, err := sentry.OpenImage(f)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	root, err := image.Inode(image.RootNid())
	if err != nil {
		t.Fatal(err)
	}
	a, errA := root.Lookup("a")
	b, errB := root.Lookup("b")
	if errA != nil || errB != nil || a != b {
		t.Fatalf("a is inode %d (%v), b is inode %d (%v)", a, errA, b, errB)
	}
	if ino, err := image.Inode(a); err != nil || ino.Nlink() != 3 {
		t.Fatalf("link count %d, %v; want 3", ino.Nlink(), err)
	}
}

// TestRandomTrees holds the layout to both readers over shapes nobody chose.
func TestRandomTrees(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		tr := newTree(t)
		dirs := []*Node{tr.root}
		for range 400 {
			parent := dirs[rng.IntN(len(dirs))]
			name := strings.Repeat(string(rune('!'+rng.IntN(14))), 1+rng.IntN(40)) + fmt.Sprint(rng.IntN(1000))
			var n *Node
			switch rng.IntN(6) {
			case 0, 1:
				n = dir(0o755)
				dirs = append(dirs, n)
			case 2:
				n = link(strings.Repeat("t", 1+rng.IntN(2*maxInline)))
			default:
				n = tr.regular(bytes.Repeat([]byte{byte(rng.IntN(3))}, rng.IntN(3*BlockSize)))
			}
			parent.Children[name] = n
		}
		tr.finish()
		tr.check()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func TestSameInputSameBytes(t *testing.T) {
	build := func() []byte {
		tr := newTree(t)
		for i := range 300 {
			tr.root.Children[fmt.Sprint("f", i)] = tr.regular([]byte(fmt.Sprint(i)))
		}
		tr.finish()
		data, err := os.ReadFile(tr.file.Name())
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if !bytes.Equal(build(), build()) {
		t.Fatal("two images of the same tree differ")
	}
}

func TestFinishRefuses(t *testing.T) {
	loop := dir(0o755)
	loop.Children["again"] = loop
	twice := dir(0o755)
	cases := map[string]*Node{
		"root that is a file":  {Mode: unix.S_IFREG},
		"device":               {Mode: unix.S_IFDIR, Children: map[string]*Node{"null": {Mode: unix.S_IFCHR}}},
		"no type":              {Mode: unix.S_IFDIR, Children: map[string]*Node{"x": {Mode: 0o644}}},
		"name with slash":      {Mode: unix.S_IFDIR, Children: map[string]*Node{"a/b": dir(0)}},
		"dot dot":              {Mode: unix.S_IFDIR, Children: map[string]*Node{"..": dir(0)}},
		"empty name":           {Mode: unix.S_IFDIR, Children: map[string]*Node{"": dir(0)}},
		"name with NUL":        {Mode: unix.S_IFDIR, Children: map[string]*Node{"a\x00": dir(0)}},
		"name too long":        {Mode: unix.S_IFDIR, Children: map[string]*Node{strings.Repeat("a", 256): dir(0)}},
		"empty target":         {Mode: unix.S_IFDIR, Children: map[string]*Node{"l": link("")}},
		"target too long":      {Mode: unix.S_IFDIR, Children: map[string]*Node{"l": link(strings.Repeat("a", 4096))}},
		"directory loop":       loop,
		"data between blocks":  {Mode: unix.S_IFDIR, Children: map[string]*Node{"f": {Mode: unix.S_IFREG, Data: Extent{Offset: 5, Size: 1}}}},
		"children of a file":   {Mode: unix.S_IFDIR, Children: map[string]*Node{"f": {Mode: unix.S_IFREG, Children: map[string]*Node{"x": dir(0)}}}},
		"directory, two names": {Mode: unix.S_IFDIR, Children: map[string]*Node{"a": twice, "b": twice}},
	}
	for name, root := range cases {
		tr := newTree(t)
		if err := tr.w.Finish(root); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLimit(t *testing.T) {
	tr := newTree(t)
	w, err := NewWriter(tr.file, 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(strings.NewReader("0123456789")); err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	if _, err := w.Append(strings.NewReader("x")); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("above the limit: %v", err)
	}
	for _, bad := range []int64{0, -1, maxBytes + 1} {
		if _, err := NewWriter(tr.file, bad); err == nil {
			t.Errorf("limit %d accepted", bad)
		}
	}
}

// TestFailedAppendLeavesNothing: zeros are not written, so what a failed copy
// left behind would become part of the next file.
func TestFailedAppendLeavesNothing(t *testing.T) {
	tr := newTree(t)
	broken := io.MultiReader(bytes.NewReader(bytes.Repeat([]byte{0xff}, 2*chunkSize)), brokenReader{})
	if _, err := tr.w.Append(broken); !errors.Is(err, errBroken) {
		t.Fatalf("got %v", err)
	}
	tr.root.Children["zeros"] = tr.regular(make([]byte, 2*chunkSize))
	tr.finish()
	tr.check()
}

var errBroken = errors.New("broken source")

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

func TestZerosTakeNoRoom(t *testing.T) {
	tr := newTree(t)
	tr.root.Children["zeros"] = tr.regular(make([]byte, 64<<20))
	dead := tr.regular(bytes.Repeat([]byte{1}, 32<<20))
	tr.w.Discard(dead.Data)
	tr.finish()
	tr.check()
	var st unix.Stat_t
	if err := unix.Stat(tr.file.Name(), &st); err != nil {
		t.Fatal(err)
	}
	if room := st.Blocks * 512; room > 1<<20 {
		t.Errorf("an image of zeros takes %d bytes of disk", room)
	}
}
