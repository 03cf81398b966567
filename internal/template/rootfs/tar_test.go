package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/template/erofs"
)

func TestTar(t *testing.T) {
	b, _ := newBuilder(t)
	addLayers(t, b, []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 5, Gid: 6},
		dir("etc"), file("etc/conf", "a"), file("/abs/olute", "b"), file("./dot/./ted", "c"),
		symlink("link", "/etc/conf"), hardlink("hard", "etc/conf"),
		{Name: "pipe", Typeflag: tar.TypeFifo}, {Name: "dev/null", Typeflag: tar.TypeChar}, {Name: "dev/sda", Typeflag: tar.TypeBlock},
		{Name: "suid", Mode: 0o4755, Uid: 7, Gid: 8, ModTime: time.Unix(1e9, 0),
			PAXRecords: map[string]string{"content": "s", "SCHILY.xattr.security.capability": "x"}},
		{Name: "old", ModTime: time.Unix(-5, 0)},
	})
	want(t, b, "abs/", "abs/olute b", "dev/", "dot/", "dot/ted c", "etc/", "etc/conf a", "hard a", "link -> /etc/conf", "old ",
		"pipe of type 010000", "suid s")
	if b.root.Mode != unix.S_IFDIR|0o750 || b.root.UID != 5 || b.root.GID != 6 {
		t.Errorf("root is %+v", b.root)
	}
	suid := b.root.Children["suid"]
	if suid.Mode != unix.S_IFREG|0o4755 || suid.UID != 7 || suid.GID != 8 || suid.Mtime.Unix() != 1e9 {
		t.Errorf("suid is %+v", suid)
	}
	if old := b.root.Children["old"].Mtime.Unix(); old != 0 {
		t.Errorf("a time before 1970 became %d", old)
	}
	if b.root.Children["hard"] != b.root.Children["etc"].Children["conf"] {
		t.Error("hard link is a copy")
	}
	if got := b.Dropped(); got != (Dropped{Devices: 2, Xattrs: 1}) {
		t.Errorf("dropped %+v", got)
	}
}

// TestLinksInsidePaths: an archive may put files below a link. They go where
// the link leads inside the tree, never anywhere else.
func TestLinksInsidePaths(t *testing.T) {
	cases := map[string]struct {
		headers []tar.Header
		want    []string
	}{
		"merged directory": {
			[]tar.Header{symlink("bin", "usr/bin"), file("bin/sh", "x")},
			[]string{"bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/sh x"}},
		"absolute": {
			[]tar.Header{symlink("a/l", "/b"), file("a/l/f", "x")},
			[]string{"a/", "a/l -> /b", "b/", "b/f x"}},
		"above the root": {
			[]tar.Header{symlink("l", "../../../../etc"), file("l/passwd", "x")},
			[]string{"etc/", "etc/passwd x", "l -> ../../../../etc"}},
		"up and down": {
			[]tar.Header{dir("a/b"), symlink("a/b/l", "../../c/./d/.."), file("a/b/l/f", "x")},
			[]string{"a/", "a/b/", "a/b/l -> ../../c/./d/..", "c/", "c/d/", "c/f x"}},
		"chain": {
			[]tar.Header{symlink("l", "m"), symlink("m", "n"), file("l/f", "x")},
			[]string{"l -> m", "m -> n", "n/", "n/f x"}},
		"last name is not followed": {
			[]tar.Header{file("victim", "old"), symlink("l", "victim"), file("l", "new")},
			[]string{"l new", "victim old"}},
		"directory replaces link": {
			[]tar.Header{file("a/f", "x"), symlink("l", "a"), dir("l"), file("l/g", "y")},
			[]string{"a/", "a/f x", "l/", "l/g y"}},
		"hard link through a link": {
			[]tar.Header{file("a/f", "x"), symlink("l", "a"), hardlink("h", "l/f")},
			[]string{"a/", "a/f x", "h x", "l -> a"}},
		"hard link to a link": {
			[]tar.Header{symlink("l", "nowhere"), hardlink("h", "l")},
			[]string{"h -> nowhere", "l -> nowhere"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, _ := newBuilder(t)
			addLayers(t, b, c.headers)
			want(t, b, c.want...)
		})
	}
}

func TestReplacing(t *testing.T) {
	cases := map[string]struct {
		headers []tar.Header
		want    []string
	}{
		"file by file":           {[]tar.Header{file("f", "1"), file("f", "2")}, []string{"f 2"}},
		"file by directory":      {[]tar.Header{file("f", "1"), dir("f")}, []string{"f/"}},
		"directory by file":      {[]tar.Header{file("d/e/f", "1"), file("d", "2")}, []string{"d 2"}},
		"directory by directory": {[]tar.Header{file("d/f", "1"), dir("d")}, []string{"d/", "d/f 1"}},
		"one of two names":       {[]tar.Header{file("a", "1"), hardlink("b", "a"), file("a", "2")}, []string{"a 2", "b 1"}},
		"both names":             {[]tar.Header{file("a", "1"), hardlink("b", "a"), file("a", "2"), file("b", "3")}, []string{"a 2", "b 3"}},
		"link to itself":         {[]tar.Header{file("a", "1"), hardlink("a", "a"), file("a", "2")}, []string{"a 2"}},
		"by a link into itself":  {[]tar.Header{file("d/f", "1"), hardlink("d", "d/f")}, []string{"d 1"}},
		"same link twice":        {[]tar.Header{file("a", "1"), hardlink("b", "a"), hardlink("b", "a"), file("b", "2")}, []string{"a 1", "b 2"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, _ := newBuilder(t)
			addLayers(t, b, c.headers)
			want(t, b, c.want...)
		})
	}
}

func TestHostileArchives(t *testing.T) {
	deep := strings.Repeat("d/", 900)
	cases := map[string]struct {
		headers []tar.Header
		is      error
	}{
		"climbing name":                {headers: []tar.Header{file("../etc/passwd", "x")}},
		"climbing in the middle":       {headers: []tar.Header{file("a/../../b", "x")}},
		"harmless dots are no excuse":  {headers: []tar.Header{file("a/../b", "x")}},
		"name too long":                {headers: []tar.Header{file(strings.Repeat("n", 256), "x")}},
		"path too long":                {headers: []tar.Header{file(strings.Repeat("n/", 2100)+"n", "x")}},
		"file below a file":            {headers: []tar.Header{file("a", "x"), file("a/b", "y")}, is: unix.ENOTDIR},
		"link loop in a path":          {headers: []tar.Header{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}, is: unix.ELOOP},
		"link to itself in a path":     {headers: []tar.Header{symlink("a", "a"), file("a/f", "x")}, is: unix.ELOOP},
		"hard link to nothing":         {headers: []tar.Header{hardlink("a", "b")}, is: unix.ENOENT},
		"hard link to the host":        {headers: []tar.Header{hardlink("a", "/etc/shadow")}, is: unix.ENOENT},
		"hard link below a file":       {headers: []tar.Header{file("f", "x"), hardlink("a", "f/g")}, is: unix.ENOENT},
		"hard link that climbs":        {headers: []tar.Header{hardlink("a", "../etc/shadow")}},
		"hard link to a directory":     {headers: []tar.Header{dir("d"), hardlink("a", "d")}, is: unix.EISDIR},
		"hard link to the root":        {headers: []tar.Header{hardlink("a", "/")}},
		"root is a link":               {headers: []tar.Header{symlink("/", "x")}},
		"empty link":                   {headers: []tar.Header{symlink("a", "")}},
		"link target too long":         {headers: []tar.Header{symlink("a", strings.Repeat("t", 4096))}},
		"unknown type":                 {headers: []tar.Header{{Name: "a", Typeflag: 'Z'}}},
		"negative owner":               {headers: []tar.Header{{Name: "a", Uid: -1}}},
		"owner beyond 32 bits":         {headers: []tar.Header{{Name: "a", Gid: 1 << 32}}},
		"more bytes than allowed":      {headers: []tar.Header{file("a", strings.Repeat("x", testBytes+1))}, is: erofs.ErrTooLarge},
		"same bytes again and again":   {headers: []tar.Header{file("a", strings.Repeat("x", testBytes/2+1)), file("a", strings.Repeat("x", testBytes/2+1))}, is: erofs.ErrTooLarge},
		"too deep":                     {headers: []tar.Header{file(deep+"f", "x"), symlink("l", deep), file("l/"+deep+"f", "x")}},
		"too many files, even if gone": {headers: manyFiles("f", testFiles+1), is: ErrTooMany},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, _ := newBuilder(t)
			err := b.AddTar(context.Background(), archive(t, c.headers...))
			if err == nil {
				t.Fatalf("accepted: %q", dump(t, b))
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %v, want %v", err, c.is)
			}
		})
	}
}

func manyFiles(name string, n int) []tar.Header {
	headers := make([]tar.Header, n)
	for i := range headers {
		headers[i] = symlink(name, "x")
	}
	return headers
}

// TestSparseBomb: a sparse file may claim to be huge for a few bytes.
func TestSparseBomb(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	// A GNU sparse 1.0 file: the map comes first in the data.
	h := tar.Header{Name: "GNUSparseFile.0/bomb", Typeflag: tar.TypeReg, Mode: 0o644, Size: 512, Format: tar.FormatPAX}
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(append([]byte("0\n"), make([]byte, 510)...)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	records := paxRecord("GNU.sparse.major", "1") + paxRecord("GNU.sparse.minor", "0") +
		paxRecord("GNU.sparse.name", "bomb") + paxRecord("GNU.sparse.realsize", "1125899906842624")
	var pax bytes.Buffer
	p := tar.NewWriter(&pax)
	if err := p.WriteHeader(&tar.Header{Name: "PaxHeaders.0/bomb", Typeflag: tar.TypeReg, Size: int64(len(records)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p, records); err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	head := pax.Bytes()
	head[156] = tar.TypeXHeader
	fixChecksum(head[:512])
	b, _ := newBuilder(t)
	err := b.AddTar(context.Background(), io.MultiReader(bytes.NewReader(head), &buf))
	if !errors.Is(err, erofs.ErrTooLarge) {
		t.Errorf("got %v, want %v", err, erofs.ErrTooLarge)
	}
}

// paxRecord is "LENGTH key=value\n", where the length counts itself.
func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for n != len(rest)+len(strconv.Itoa(n)) {
		n = len(rest) + len(strconv.Itoa(n))
	}
	return strconv.Itoa(n) + rest
}

func fixChecksum(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, c := range block {
		sum += int(c)
	}
	for i := 5; i >= 0; i-- {
		block[148+i] = '0' + byte(sum&7)
		sum >>= 3
	}
	block[154], block[155] = 0, ' '
}

func TestCutShortAndTrailed(t *testing.T) {
	whole, err := io.ReadAll(archive(t, file("a", strings.Repeat("x", 5000))))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := newBuilder(t)
	if err := b.AddTar(context.Background(), bytes.NewReader(whole[:3000])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
	trailed := io.MultiReader(bytes.NewReader(whole), bytes.NewReader(make([]byte, 2*maxTrailer)))
	if err := b.AddTar(context.Background(), trailed); err == nil {
		t.Error("endless trailer accepted")
	}
	// What reads a checksum reports it at the end of its data.
	wrong := errors.New("wrong checksum")
	if err := b.AddTar(context.Background(), io.MultiReader(bytes.NewReader(whole), failing{wrong})); !errors.Is(err, wrong) {
		t.Errorf("checksum: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.AddTar(ctx, bytes.NewReader(whole)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
