// Package rootfs builds a root filesystem in memory from untrusted archives
// and directories, while the files' data goes straight into an EROFS image.
//
// Nothing an archive says ever touches the host's file system: paths, links
// and whiteouts only move nodes of a tree. Links in the middle of a path are
// followed inside that tree, as they will be at run time.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/template/erofs"
)

// Limits of every tree, whatever the archive says.
const (
	maxPath  = 4096 // bytes
	maxDepth = 1000 // directories in each other
	maxHops  = 40   // symbolic links followed for one path, as in Linux
)

// ErrTooMany is returned when a tree would have more files than allowed.
var ErrTooMany = errors.New("too many files")

// Dropped counts what a template cannot keep.
type Dropped struct {
	Devices int // /dev is made anew in every sandbox
	Sockets int
	// Xattrs counts files with extended attributes, file capabilities among
	// them: gVisor cannot read images that have any.
	Xattrs int
}

// Builder is a root filesystem under construction. It is not safe for
// concurrent use.
type Builder struct {
	image   *erofs.Writer
	root    *erofs.Node
	left    int                 // how many entries may still be added
	links   map[*erofs.Node]int // names of files that have more than one
	fresh   map[entry]bool      // what the current layer has added
	dropped Dropped
}

// entry is one name in one directory.
type entry struct {
	dir  *erofs.Node
	name string
}

// New starts an empty tree whose data goes to image. At most maxFiles entries
// are ever added, those that later layers replace included.
func New(image *erofs.Writer, maxFiles int) *Builder {
	return &Builder{
		image: image,
		root:  newDir(0o755),
		left:  maxFiles,
		links: make(map[*erofs.Node]int),
		fresh: make(map[entry]bool),
	}
}

// Root returns the tree built so far.
func (b *Builder) Root() *erofs.Node { return b.root }

// Dropped returns what had to be left out so far.
func (b *Builder) Dropped() Dropped { return b.dropped }

func newDir(perm uint16) *erofs.Node {
	return &erofs.Node{Mode: unix.S_IFDIR | perm, Children: make(map[string]*erofs.Node)}
}

// splitPath cuts a path of an archive into its names. Every path starts at the
// tree's root; one that climbs with ".." is refused.
func splitPath(path string) ([]string, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("path of %d bytes: longer than %d", len(path), maxPath)
	}
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if err := erofs.CheckName(name); err != nil {
			return nil, fmt.Errorf("path %.300q: %w", path, err)
		}
		names = append(names, name)
	}
	return names, nil
}

// walk follows names from the root and returns what they end in, which is
// never a link. With create, missing directories are made.
func (b *Builder) walk(names []string, create bool) (*erofs.Node, error) {
	stack := []*erofs.Node{b.root}
	hops := 0
	for len(names) > 0 {
		name, dir := names[0], stack[len(stack)-1]
		names = names[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			// Only a link's target has this. Above the root is the root.
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		child := dir.Children[name]
		switch {
		case child == nil && !create:
			return nil, unix.ENOENT
		case child == nil:
			if err := erofs.CheckName(name); err != nil {
				return nil, err
			}
			child = newDir(0o755)
			if err := b.set(dir, name, child); err != nil {
				return nil, err
			}
		case child.IsSymlink():
			if hops++; hops > maxHops {
				return nil, unix.ELOOP
			}
			names = append(strings.Split(child.Target, "/"), names...)
			if strings.HasPrefix(child.Target, "/") {
				stack = stack[:1]
			}
			continue
		case !child.IsDir() && len(names) == 0:
			return child, nil
		case !child.IsDir():
			return nil, unix.ENOTDIR
		}
		if create {
			b.fresh[entry{dir, name}] = true
		}
		if stack = append(stack, child); len(stack) > maxDepth {
			return nil, fmt.Errorf("more than %d directories in each other", maxDepth)
		}
	}
	return stack[len(stack)-1], nil
}

// parent returns the directory that the last of names belongs in, made if it
// is missing, and that name. names must not be empty.
func (b *Builder) parent(names []string) (*erofs.Node, string, error) {
	last := len(names) - 1
	dir, err := b.walk(names[:last], true)
	if err == nil && !dir.IsDir() {
		err = unix.ENOTDIR
	}
	return dir, names[last], err
}

// set makes name in dir stand for node, which is new or, as a hard link, has
// other names. What had the name before is gone, except that a directory put
// over a directory only changes it.
func (b *Builder) set(dir *erofs.Node, name string, node *erofs.Node) error {
	if b.left--; b.left < 0 {
		return ErrTooMany
	}
	b.fresh[entry{dir, name}] = true
	old := dir.Children[name]
	if old == node {
		return nil
	}
	if old != nil && old.IsDir() && node.IsDir() {
		old.Mode, old.UID, old.GID, old.Mtime = node.Mode, node.UID, node.GID, node.Mtime
		return nil
	}
	if old != nil {
		b.release(old)
	}
	dir.Children[name] = node
	return nil
}

// link gives node, which has a name already, another one.
func (b *Builder) link(dir *erofs.Node, name string, node *erofs.Node) error {
	if dir.Children[name] == node {
		return nil
	}
	b.links[node] = max(b.links[node], 1) + 1
	return b.set(dir, name, node)
}

// release drops one name of node and, with the last one, its data.
func (b *Builder) release(node *erofs.Node) {
	if n := b.links[node]; n > 1 {
		b.links[node] = n - 1
		return
	}
	delete(b.links, node)
	if node.IsRegular() {
		b.image.Discard(node.Data)
	}
	for name, child := range node.Children {
		b.release(child)
		delete(b.fresh, entry{node, name})
	}
}

// remove takes name out of dir.
func (b *Builder) remove(dir *erofs.Node, name string) {
	if node := dir.Children[name]; node != nil {
		delete(dir.Children, name)
		delete(b.fresh, entry{dir, name})
		b.release(node)
	}
}

// regular makes a file of r's content.
func (b *Builder) regular(r io.Reader, node erofs.Node) (*erofs.Node, error) {
	ext, err := b.image.Append(r)
	if err != nil {
		return nil, err
	}
	node.Data = ext
	return &node, nil
}

// clampTime brings t into what an inode can hold and every program can show.
func clampTime(t time.Time) time.Time {
	const last = 1<<34 - 1 // the year 2514, ext4's last
	if sec := t.Unix(); sec < 0 || sec > last {
		return time.Unix(min(max(sec, 0), last), 0)
	}
	return t
}
