package namespaces

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is one line of /proc/self/mountinfo.
type mount struct {
	point   string // where it is mounted
	fsType  string
	options string // of the file system, not of the mount
	root    string // which of its directories is mounted
}

// mounts lists what is mounted, in the order in which it was.
func mounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m, err := parseMount(lines.Text())
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

// parseMount reads "36 35 98:0 /root /point opts tag:1 - type source options".
func parseMount(line string) (mount, error) {
	left, right, ok := strings.Cut(line, " - ")
	before, after := strings.Fields(left), strings.Fields(right)
	if !ok || len(before) < 6 || len(after) < 3 {
		return mount{}, fmt.Errorf("mountinfo line %q is not understood", line)
	}
	return mount{point: unescape(before[4]), root: unescape(before[3]), fsType: after[0], options: after[2]}, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// below lists the mount points below dir, dir itself excluded, outermost first
// and each once.
func below(dir string) ([]string, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var points []string
	for _, m := range all {
		if strings.HasPrefix(m.point, dir+"/") {
			points = append(points, m.point)
		}
	}
	slices.Sort(points)
	return slices.Compact(points), nil
}

// unmountBelow removes every mount at dir and below it.
func unmountBelow(dir string) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(all) {
		if m.point != dir && !strings.HasPrefix(m.point, dir+"/") {
			continue
		}
		err := unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unmount %s: %w", m.point, err)
		}
	}
	return nil
}

// removeDir removes a directory and all mounts in it. As long as one is left it
// removes nothing: what is mounted would be emptied.
func removeDir(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	left, err := below(dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("remove %s: %s is still mounted", dir, left[0])
	}
	return os.RemoveAll(dir)
}

// isolate makes dir a mount of its own that shares nothing with others, so
// that what is mounted below it never spreads to the machine's other services.
func isolate(dir string) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(m mount) bool { return m.point == dir }) {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

// mountOverlay mounts lower at target with a writable layer below writable.
func mountOverlay(target, lower, writable string) error {
	upper, work := filepath.Join(writable, "upper"), filepath.Join(writable, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	if err := copyDir(lower, upper); err != nil {
		return err
	}
	options := "lowerdir=" + escapeOverlay(lower) + ",upperdir=" + escapeOverlay(upper) + ",workdir=" + escapeOverlay(work) +
		",redirect_dir=off,metacopy=off,index=off"
	err := unix.Mount("moat-box", target, "overlay", unix.MS_NODEV, options)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("mount an overlay over %s: %w (does it lie in too many overlays already, as inside another container?)", lower, err)
	}
	if err != nil {
		return fmt.Errorf("mount an overlay over %s: %w", lower, err)
	}
	return nil
}

// copyDir makes the directory upper, which gives the overlay's top its owner
// and mode, like lower.
func copyDir(lower, upper string) error {
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return fmt.Errorf("look at %s: %w", lower, err)
	}
	return errors.Join(
		os.Mkdir(upper, 0o700),
		os.Chown(upper, int(st.Uid), int(st.Gid)),
		unix.Chmod(upper, st.Mode&0o7777),
	)
}

// escapeOverlay protects the characters that separate overlay options.
func escapeOverlay(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}
