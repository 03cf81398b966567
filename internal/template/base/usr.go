package base

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The host's /usr is shown through an overlay without an upper layer: the
// lower layer is the host's directory, above it lies a mask that holds nothing
// but whiteouts for what must stay hidden. So hiding is a property of the file
// system itself: it holds for root, for whoever copies or re-mounts the tree,
// and blocks nothing on the host, where a mount over a file would keep package
// managers from replacing that file.

// ensureMask returns the mask below dir that hides exactly these paths. A mask
// is never changed or removed: overlays that running sandboxes see may be made
// of it, and would show what it no longer hides.
func ensureMask(dir, usr string, hidden []Hidden) (string, error) {
	sum := sha256.New()
	for _, h := range hidden {
		fmt.Fprintf(sum, "%s\x00", h.Path)
	}
	mask := filepath.Join(dir, fmt.Sprintf("mask-%x", sum.Sum(nil)[:12]))
	if _, err := os.Lstat(mask); !errors.Is(err, fs.ErrNotExist) {
		return mask, err
	}
	temp := filepath.Join(dir, "new-mask")
	if err := os.RemoveAll(temp); err != nil {
		return "", err
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return "", err
	}
	if err := writeMask(temp, usr, hidden); err != nil {
		return "", errors.Join(err, os.RemoveAll(temp))
	}
	return mask, os.Rename(temp, mask)
}

// writeMask fills the empty directory mask with a whiteout for every hidden
// path. The directories above them are merged with the host's, whose owner and
// mode they take.
func writeMask(mask, usr string, hidden []Hidden) error {
	if err := copyDirAttributes(usr, mask); err != nil {
		return err
	}
	for _, h := range hidden {
		if err := makeParents(mask, usr, filepath.Dir(h.Path)); err != nil {
			return fmt.Errorf("hide /usr/%s: %w", h.Path, err)
		}
		name := filepath.Join(mask, h.Path)
		if err := unix.Mknod(name, unix.S_IFCHR, int(unix.Mkdev(0, 0))); err != nil {
			return fmt.Errorf("hide /usr/%s: %w", h.Path, err)
		}
	}
	return nil
}

func makeParents(mask, usr, rel string) error {
	if rel == "." {
		return nil
	}
	if err := makeParents(mask, usr, filepath.Dir(rel)); err != nil {
		return err
	}
	dir := filepath.Join(mask, rel)
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return copyDirAttributes(filepath.Join(usr, rel), dir)
}

func copyDirAttributes(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	if err := os.Chown(to, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(to, info.Mode()); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// mountUsr shows the host's directory usr, less what mask hides, at target.
func mountUsr(target, mask, usr string) error {
	options := "lowerdir=" + escapeOverlay(mask) + ":" + escapeOverlay(usr) +
		",redirect_dir=nofollow,metacopy=off"
	if err := unix.Mount("moat-base", target, "overlay", unix.MS_RDONLY|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount /usr of the base template as an overlay: %w", err)
	}
	return nil
}

// escapeOverlay protects the characters that separate overlay options.
func escapeOverlay(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}

// isolate makes dir a mount of its own that shares nothing with others. What
// is mounted below it then stays here, and what is unmounted here stays where
// running sandboxes have it.
func isolate(dir string) error {
	mounted, err := isMountPoint(dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

// isMountPoint reports whether something is mounted at dir itself.
func isMountPoint(dir string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("look at %s: the kernel does not tell mount points (it is older than 5.8)", dir)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// mountPoints lists where below dir, a path without links, something is mounted.
func mountPoints(dir string) (map[string]bool, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	points := make(map[string]bool)
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			return nil, fmt.Errorf("mountinfo line %q is not understood", line)
		}
		if point := unescape.Replace(fields[4]); strings.HasPrefix(point, dir+"/") {
			points[point] = true
		}
	}
	return points, nil
}

// unescape undoes how mountinfo writes the characters that separate its fields.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// unmountAll removes every mount at dir, with what is mounted below.
func unmountAll(dir string) error {
	for {
		mounted, err := isMountPoint(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !mounted {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
