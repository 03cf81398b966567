package erofs

import "fmt"

// Sizes and numbers of the format, in bytes unless said otherwise.
const (
	inodeSize  = 64 // the extended form, which alone keeps times and 32-bit owners
	slotSize   = 32 // inodes are numbered in units of this
	direntSize = 12
	// firstInode leaves inode number 0 unused, which readdir(3) takes for a
	// deleted entry.
	firstInode = inodeSize
	// maxInline bounds what is packed behind a directory's or link's inode: a
	// longer tail would waste more of its block than it saves.
	maxInline = 1024
)

// inode is a Node with its place in the image.
type inode struct {
	node   *Node
	name   string
	parent *inode // where it was first found; the root is its own
	nid    uint64 // inode number: slots from the start of the inode area
	nlink  uint32
	size   int64  // bytes of content; of a directory, of its entries
	inline bool   // content lies directly behind the inode
	data   int64  // offset of the content otherwise
	serial uint32 // for the 32-bit inode number field
}

// layout is the finished plan of an image: where everything goes.
type layout struct {
	inodes []*inode // in the order of their numbers; the root first
	byNode map[*Node]*inode
	meta   int64 // offset of the inode area
	end    int64 // size of the image
}

// planLayout numbers every inode below root and finds room for directories
// and links from offset free on, then for the inodes.
func planLayout(root *Node, free int64) (*layout, error) {
	if !root.IsDir() {
		return nil, fmt.Errorf("image root is not a directory")
	}
	l := &layout{byNode: make(map[*Node]*inode)}
	if err := l.collect("", root, nil); err != nil {
		return nil, err
	}
	cursor := int64(firstInode)
	for i, ino := range l.inodes {
		ino.serial = uint32(i + 1)
		total := int64(inodeSize)
		if ino.inline {
			total += ino.size
		}
		// Neither an inode nor what is packed behind it crosses a block.
		if cursor%BlockSize+total > BlockSize {
			cursor = roundUp(cursor)
		}
		ino.nid = uint64(cursor / slotSize)
		cursor += (total + inodeSize - 1) &^ (inodeSize - 1)
		if !ino.inline && !ino.node.IsRegular() && ino.size > 0 {
			ino.data = free
			free += roundUp(ino.size)
		}
	}
	l.meta = free
	l.end = free + roundUp(cursor)
	return l, nil
}

// collect adds node and all below it, parents before children.
func (l *layout) collect(name string, node *Node, parent *inode) error {
	if seen := l.byNode[node]; seen != nil {
		if node.IsDir() {
			return fmt.Errorf("%s/%s: a directory cannot have a second name", parent.path(), name)
		}
		seen.nlink++
		return nil
	}
	ino := &inode{node: node, name: name, nlink: 1, parent: parent}
	if parent == nil {
		ino.parent = ino
	}
	if err := node.check(); err != nil {
		return fmt.Errorf("%s: %w", ino.path(), err)
	}
	l.byNode[node] = ino
	l.inodes = append(l.inodes, ino)
	switch {
	case node.IsRegular():
		ino.size, ino.data = node.Data.Size, node.Data.Offset
	case node.IsSymlink():
		ino.size = int64(len(node.Target))
		ino.inline = ino.size <= maxInline
	case node.IsDir():
		return l.collectDir(ino)
	}
	return nil
}

func (l *layout) collectDir(dir *inode) error {
	dir.nlink = 2
	dir.size = directorySize(dir.node)
	dir.inline = dir.size <= maxInline
	for _, name := range dir.node.names() {
		if err := CheckName(name); err != nil {
			return fmt.Errorf("%s: %w", dir.path(), err)
		}
		child := dir.node.Children[name]
		if child.IsDir() {
			dir.nlink++
		}
		if err := l.collect(name, child, dir); err != nil {
			return err
		}
	}
	return nil
}

// path names ino for errors.
func (ino *inode) path() string {
	if ino.parent == ino {
		return ""
	}
	return ino.parent.path() + "/" + ino.name
}
