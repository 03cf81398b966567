package namespaces

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountImage mounts the EROFS image read-only at target. Newer kernels mount
// the file itself, older ones need a loop device, which frees itself with the
// mount.
func mountImage(image, target string) error {
	const flags = unix.MS_RDONLY | unix.MS_NODEV
	err := unix.Mount(image, target, "erofs", flags, "")
	if errors.Is(err, unix.ENOTBLK) {
		err = withLoop(image, func(device string) error { return unix.Mount(device, target, "erofs", flags, "") })
	}
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mount image %s: this machine's kernel has no EROFS, which templates made from images need with this isolation: %w", image, err)
	}
	if err != nil {
		return fmt.Errorf("mount image %s: %w", image, err)
	}
	return nil
}

// loopAttempts is how often another process may take the free loop device
// before we do.
const loopAttempts = 64

// withLoop calls use with a loop device on the image. The device is given back
// when its last user has gone.
func withLoop(image string, use func(device string) error) error {
	file, err := os.Open(image)
	if err != nil {
		return err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("find a loop device: %w", err)
	}
	defer control.Close()
	for range loopAttempts {
		index, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("find a loop device: %w", err)
		}
		name := fmt.Sprintf("/dev/loop%d", index)
		device, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("open loop device: %w", err)
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &unix.LoopConfig{
			Fd:   uint32(file.Fd()),
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			err = use(name)
			return errors.Join(err, device.Close())
		}
		if closed := device.Close(); !errors.Is(err, unix.EBUSY) || closed != nil {
			return errors.Join(fmt.Errorf("attach image to loop device: %w", err), closed)
		}
	}
	return errors.New("find a loop device: others take every one")
}
