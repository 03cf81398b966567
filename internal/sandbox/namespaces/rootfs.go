package namespaces

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// minInodes is how many files a small writable layer may have at least.
const minInodes = 1 << 14

// mountRoot makes a box's root filesystem below dir and returns its path.
// Everything is mounted below dir; unmountBelow(dir) takes it away, also when
// mountRoot fails.
func mountRoot(dir string, root sandbox.Root, diskMB int) (string, error) {
	lower := root.Dir
	if root.Image != "" {
		lower = filepath.Join(dir, "lower")
		if err := os.Mkdir(lower, 0o700); err != nil {
			return "", err
		}
		if err := mountImage(root.Image, lower); err != nil {
			return "", err
		}
	}
	target, disk := filepath.Join(dir, "rootfs"), filepath.Join(dir, "disk")
	if err := errors.Join(os.Mkdir(target, 0o700), os.Mkdir(disk, 0o700)); err != nil {
		return "", err
	}
	// One tmpfs holds what is written anywhere, so that its size is the limit.
	options := fmt.Sprintf("mode=0700,size=%dm", diskMB)
	if diskMB > 0 {
		options += fmt.Sprintf(",nr_inodes=%d", max(minInodes, diskMB<<8))
	}
	if err := unix.Mount("moat-disk", disk, "tmpfs", unix.MS_NODEV, options); err != nil {
		return "", fmt.Errorf("mount the writable layer: %w", err)
	}
	// An overlay shows its lower directory without what is mounted in it, so
	// that every mount of the template gets an overlay of its own.
	inner, err := below(lower)
	if err != nil {
		return "", err
	}
	for i, source := range append([]string{lower}, inner...) {
		writable := filepath.Join(disk, fmt.Sprint(i))
		if err := os.Mkdir(writable, 0o700); err != nil {
			return "", err
		}
		if err := mountOverlay(target+strings.TrimPrefix(source, lower), source, writable); err != nil {
			return "", err
		}
	}
	return target, nil
}
