package erofs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MaxName is the longest name of a directory entry, in bytes.
const MaxName = 255

// MaxTarget is the longest target of a symbolic link, in bytes.
const MaxTarget = 4095

// Node is one inode of the tree. A file with several hard links is one Node
// with several names; a directory has one.
type Node struct {
	// Mode is the type and the permissions as in stat(2).
	Mode     uint16
	UID, GID uint32
	Mtime    time.Time
	// Data is a regular file's content.
	Data Extent
	// Target is where a symbolic link points.
	Target string
	// Children are a directory's entries, without "." and "..".
	Children map[string]*Node
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsRegular reports whether n is a regular file.
func (n *Node) IsRegular() bool { return n.Mode&unix.S_IFMT == unix.S_IFREG }

// IsSymlink reports whether n is a symbolic link.
func (n *Node) IsSymlink() bool { return n.Mode&unix.S_IFMT == unix.S_IFLNK }

// names returns the children's names in the order EROFS keeps them: bytewise.
func (n *Node) names() []string { return slices.Sorted(maps.Keys(n.Children)) }

// check refuses what the format cannot express.
func (n *Node) check() error {
	if _, known := dirEntryType[n.Mode&unix.S_IFMT]; !known {
		return fmt.Errorf("file mode %#o is of no supported type", n.Mode)
	}
	if n.IsSymlink() && (n.Target == "" || len(n.Target) > MaxTarget || strings.ContainsRune(n.Target, 0)) {
		return fmt.Errorf("symbolic link target of %d bytes: not 1 to %d bytes without NUL", len(n.Target), MaxTarget)
	}
	if n.IsRegular() && n.Data.Offset%BlockSize != 0 {
		return fmt.Errorf("data at %d is not aligned to a block", n.Data.Offset)
	}
	if len(n.Children) > 0 && !n.IsDir() {
		return fmt.Errorf("%d entries below something that is no directory", len(n.Children))
	}
	return nil
}

// CheckName refuses what cannot be a directory entry's name.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > MaxName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("file name %.300q is not valid", name)
	}
	return nil
}

// dirEntryType maps the supported file types to how directory entries name
// them. Devices are left out on purpose: no template may bring one.
var dirEntryType = map[uint16]byte{
	unix.S_IFREG: 1,
	unix.S_IFDIR: 2,
	unix.S_IFIFO: 5,
	unix.S_IFLNK: 7,
}
