package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/template/erofs"
)

// AddDir copies a directory of the host to the root of the tree. It never
// follows a link out of dir, and of other file systems mounted below it takes
// only the mount points.
func (b *Builder) AddDir(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	c := copier{b: b, root: root, seen: make(map[inode]*erofs.Node)}
	c.device = info.Sys().(*syscall.Stat_t).Dev
	top := nodeOf(info)
	b.root.Mode, b.root.UID, b.root.GID, b.root.Mtime = top.Mode, top.UID, top.GID, top.Mtime
	return c.copyDir(ctx, ".", b.root, 1)
}

// copier copies one directory tree.
type copier struct {
	b      *Builder
	root   *os.Root
	device uint64
	seen   map[inode]*erofs.Node // files with several names
}

// inode is a file of the host, whatever its names.
type inode struct{ device, number uint64 }

func (c *copier) copyDir(ctx context.Context, name string, into *erofs.Node, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: more than %d directories in each other", name, maxDepth)
	}
	entries, err := c.list(name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		child := path.Join(name, e.Name())
		info, err := c.root.Lstat(child)
		if err != nil {
			return err
		}
		if err := c.copyEntry(ctx, child, info, into); err != nil {
			return fmt.Errorf("copy %s: %w", child, err)
		}
		if info.IsDir() && info.Sys().(*syscall.Stat_t).Dev == c.device {
			if err := c.copyDir(ctx, child, into.Children[e.Name()], depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// list reads a directory; its names may be any bytes.
func (c *copier) list(name string) ([]fs.DirEntry, error) {
	f, err := c.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

// copyEntry adds one file, without what is in it if it is a directory.
func (c *copier) copyEntry(ctx context.Context, name string, info fs.FileInfo, into *erofs.Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	node, stat := nodeOf(info), info.Sys().(*syscall.Stat_t)
	switch info.Mode().Type() {
	case fs.ModeDir, fs.ModeNamedPipe:
	case fs.ModeSymlink:
		target, err := c.root.Readlink(name)
		if err != nil {
			return err
		}
		node.Target = target
	case 0:
		if first := c.seen[inode{stat.Dev, stat.Ino}]; first != nil {
			return c.b.link(into, path.Base(name), first)
		}
		file, err := c.copyData(ctx, name, *node)
		if err != nil {
			return err
		}
		node = file
		if stat.Nlink > 1 {
			c.seen[inode{stat.Dev, stat.Ino}] = node
		}
	case fs.ModeSocket:
		c.b.dropped.Sockets++
		return nil
	default:
		c.b.dropped.Devices++
		return nil
	}
	return c.b.set(into, path.Base(name), node)
}

func (c *copier) copyData(ctx context.Context, name string, node erofs.Node) (*erofs.Node, error) {
	// NONBLOCK: should a pipe have taken the file's place, opening must not wait.
	f, err := c.root.OpenFile(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(errors.New("changed while it was read"), err)
	}
	if n, err := unix.Fgetxattr(int(f.Fd()), "security.capability", nil); err == nil && n > 0 {
		c.b.dropped.Xattrs++
	}
	return c.b.regular(&contextReader{ctx, f}, node)
}

func nodeOf(info fs.FileInfo) *erofs.Node {
	stat := info.Sys().(*syscall.Stat_t)
	node := &erofs.Node{Mode: uint16(stat.Mode), UID: stat.Uid, GID: stat.Gid, Mtime: clampTime(info.ModTime())}
	if node.IsDir() {
		node.Children = make(map[string]*erofs.Node)
	}
	return node
}
