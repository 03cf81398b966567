package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/template/erofs"
)

// How layers of OCI images say that something of the layers below is gone.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

// maxTrailer is how much may follow the end of an archive, in bytes.
const maxTrailer = 16 << 20

// AddTar adds a tar archive to the tree; what it has replaces what was there.
// It reads r to its end.
func (b *Builder) AddTar(ctx context.Context, r io.Reader) error {
	return b.addTar(ctx, r, false)
}

// AddLayer adds one layer of an OCI image: a tar archive whose whiteouts
// remove what lower layers, added before, have.
func (b *Builder) AddLayer(ctx context.Context, r io.Reader) error {
	clear(b.fresh)
	return b.addTar(ctx, r, true)
}

func (b *Builder) addTar(ctx context.Context, r io.Reader, layer bool) error {
	r = &contextReader{ctx, r}
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := b.addHeader(archive, header, layer); err != nil {
			return fmt.Errorf("archive entry %.300q: %w", header.Name, err)
		}
	}
	// Checksums of what r reads are only known to be right at its end.
	if n, err := io.CopyN(io.Discard, r, maxTrailer); err == nil {
		return fmt.Errorf("read archive: more than %d bytes after its end", n)
	} else if err != io.EOF {
		return fmt.Errorf("read archive: %w", err)
	}
	return nil
}

func (b *Builder) addHeader(data io.Reader, header *tar.Header, layer bool) error {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	names, err := splitPath(header.Name)
	if err != nil {
		return err
	}
	node, err := inodeOf(header)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		if !node.IsDir() {
			return errors.New("the root is not a directory")
		}
		b.root.Mode, b.root.UID, b.root.GID, b.root.Mtime = node.Mode, node.UID, node.GID, node.Mtime
		return nil
	}
	b.noteDropped(header)
	dir, name, err := b.parent(names)
	if err != nil {
		return err
	}
	if layer && strings.HasPrefix(name, whiteoutPrefix) {
		b.whiteout(dir, name)
		return nil
	}
	switch header.Typeflag {
	case tar.TypeChar, tar.TypeBlock:
		return nil
	case tar.TypeLink:
		return b.addHardLink(dir, name, header.Linkname)
	case tar.TypeSymlink:
		if header.Linkname == "" || len(header.Linkname) > erofs.MaxTarget || strings.ContainsRune(header.Linkname, 0) {
			return fmt.Errorf("symbolic link target of %d bytes: not 1 to %d bytes without NUL", len(header.Linkname), erofs.MaxTarget)
		}
		node.Target = header.Linkname
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		// A sparse file may claim any size and costs the archive nothing.
		if room := b.image.Room(); header.Size > room {
			return fmt.Errorf("%w: the file has %d bytes, room is for %d", erofs.ErrTooLarge, header.Size, room)
		}
		file, err := b.regular(data, *node)
		if err != nil {
			return err
		}
		return b.set(dir, name, file)
	}
	return b.set(dir, name, node)
}

// typeBits maps the entry types that a tree can hold to file types. Hard links
// and devices have no inode of their own here.
var typeBits = map[byte]uint16{
	tar.TypeReg:       unix.S_IFREG,
	tar.TypeCont:      unix.S_IFREG,
	tar.TypeGNUSparse: unix.S_IFREG,
	tar.TypeDir:       unix.S_IFDIR,
	tar.TypeSymlink:   unix.S_IFLNK,
	tar.TypeFifo:      unix.S_IFIFO,
	tar.TypeLink:      0,
	tar.TypeChar:      0,
	tar.TypeBlock:     0,
}

// inodeOf makes the inode that a header describes, without content.
func inodeOf(header *tar.Header) (*erofs.Node, error) {
	bits, known := typeBits[header.Typeflag]
	if !known {
		return nil, fmt.Errorf("unknown type %q", header.Typeflag)
	}
	if header.Uid < 0 || header.Gid < 0 || int64(header.Uid) >= math.MaxUint32 || int64(header.Gid) >= math.MaxUint32 {
		return nil, fmt.Errorf("owner %d:%d: not a 32-bit number", header.Uid, header.Gid)
	}
	node := &erofs.Node{
		Mode:  bits | uint16(header.Mode&0o7777),
		UID:   uint32(header.Uid),
		GID:   uint32(header.Gid),
		Mtime: clampTime(header.ModTime),
	}
	if node.IsDir() {
		node.Children = make(map[string]*erofs.Node)
	}
	return node, nil
}

func (b *Builder) noteDropped(header *tar.Header) {
	if header.Typeflag == tar.TypeChar || header.Typeflag == tar.TypeBlock {
		b.dropped.Devices++
	}
	for key := range header.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") || strings.HasPrefix(key, "LIBARCHIVE.xattr.") {
			b.dropped.Xattrs++
			return
		}
	}
}

func (b *Builder) addHardLink(dir *erofs.Node, name, target string) error {
	names, err := splitPath(target)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	if len(names) == 0 {
		return errors.New("hard link to the root")
	}
	last := len(names) - 1
	from, err := b.walk(names[:last], false)
	if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", target, err)
	}
	node := from.Children[names[last]] // of a file: none
	if node == nil {
		return fmt.Errorf("hard link to %.300q: %w", target, unix.ENOENT)
	}
	if node.IsDir() {
		return fmt.Errorf("hard link to %.300q: %w", target, unix.EISDIR)
	}
	return b.link(dir, name, node)
}

// whiteout applies the whiteout called name in dir. It only hides what lower
// layers have, wherever in its layer it stands.
func (b *Builder) whiteout(dir *erofs.Node, name string) {
	if name == opaqueMarker {
		b.removeStale(dir)
		return
	}
	name = strings.TrimPrefix(name, whiteoutPrefix)
	node := dir.Children[name]
	switch {
	case node == nil:
	case !b.fresh[entry{dir, name}]:
		b.remove(dir, name)
	case node.IsDir():
		b.removeStale(node)
	}
}

// removeStale removes everything in dir that the current layer has not added.
func (b *Builder) removeStale(dir *erofs.Node) {
	for name, child := range dir.Children {
		if !b.fresh[entry{dir, name}] {
			b.remove(dir, name)
		} else if child.IsDir() {
			b.removeStale(child)
		}
	}
}

// contextReader ends reading when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
