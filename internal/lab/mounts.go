package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	resolvConf = "/etc/resolv.conf"
)

// mountNode turns the calling thread's fresh mount namespace into the node's:
// nothing leaves it, /run is its own, /sys shows its network, and the resolver
// is the lab's.
func mountNode(nameserver string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	resolv, err := filepath.EvalSymlinks(resolvConf) // often a link into /run
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := mountSys(); err != nil {
		return err
	}
	return mountResolver(resolv, nameserver)
}

// mountSys replaces /sys, which shows the network of the namespace it was
// mounted in, and puts the cgroup hierarchies back where they were.
func mountSys() error {
	cgroups, err := unix.OpenTree(unix.AT_FDCWD, cgroupRoot,
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	switch {
	case errors.Is(err, unix.ENOENT):
		cgroups = -1
	case err != nil:
		return fmt.Errorf("pick up %s: %w", cgroupRoot, err)
	default:
		defer unix.Close(cgroups)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if cgroups < 0 {
		return nil
	}
	err = unix.MoveMount(cgroups, "", unix.AT_FDCWD, cgroupRoot, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("put %s back: %w", cgroupRoot, err)
	}
	return nil
}

// mountResolver binds a resolv.conf with this nameserver over the file at
// path. The file it is bound from is unlinked at once and lives in the mount.
func mountResolver(path, nameserver string) error {
	if _, err := os.Stat(path); err != nil { // it was in the /run now hidden
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, resolver(nameserver), 0o644)
	}
	file, err := os.CreateTemp("", "lab-resolv-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(resolver(nameserver))
	err = errors.Join(err, file.Chmod(0o644), file.Close())
	if err != nil {
		return err
	}
	if err := unix.Mount(file.Name(), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

func resolver(nameserver string) []byte {
	return []byte("nameserver " + nameserver + "\noptions timeout:1 attempts:2\n")
}
