package account

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"
)

// keep leaves an id unchanged in setresuid and setresgid.
const keep = ^uintptr(0)

// Do runs fn with the user's rights and returns its error: files are opened,
// created and owned as if the user had done it. fn must neither start other
// goroutines to work for it nor processes: they would be root.
//
// The rights are those of one operating system thread: its effective ids and
// supplementary groups are changed by system calls that bypass Go's
// process-wide wrappers. Effective ids rather than file system ids, because
// gVisor has no setfsuid; the saved id stays root, which is the way back. While
// the effective id is not root's, the kernel grants no effective capability.
func (u User) Do(fn func() error) error {
	if u.UID == 0 {
		return fn()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := u.attempt(fn)
		if back := resume(); back != nil {
			// Still locked: the thread ends with this goroutine and so never
			// serves anyone else.
			done <- back
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// attempt turns a panic in fn into an error, so that the thread's rights are
// put back and the daemon, which is the sandbox's init, lives.
func (u User) attempt(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("acting as user %s: panic: %v", u.Name, p)
		}
	}()
	if err := u.assume(); err != nil {
		return fmt.Errorf("become user %s: %w", u.Name, err)
	}
	return fn()
}

// assume gives the calling thread the user's rights. The user id comes last:
// after it the thread may no longer change groups.
func (u User) assume() error {
	if err := setGroups(u.Groups); err != nil {
		return err
	}
	if err := setEffective(syscall.SYS_SETRESGID, u.GID); err != nil {
		return err
	}
	return setEffective(syscall.SYS_SETRESUID, u.UID)
}

// resume makes the calling thread root again, which needs the reverse order.
func resume() error {
	if err := setEffective(syscall.SYS_SETRESUID, 0); err != nil {
		return fmt.Errorf("become root again: %w", err)
	}
	if err := setEffective(syscall.SYS_SETRESGID, 0); err != nil {
		return fmt.Errorf("become root again: %w", err)
	}
	if err := setGroups(nil); err != nil {
		return fmt.Errorf("become root again: %w", err)
	}
	return nil
}

func setEffective(call uintptr, id uint32) error {
	if _, _, e := syscall.RawSyscall(call, keep, uintptr(id), keep); e != 0 {
		return e
	}
	return nil
}

func setGroups(gids []uint32) error {
	var first unsafe.Pointer
	if len(gids) > 0 {
		first = unsafe.Pointer(&gids[0])
	}
	_, _, e := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(gids)), uintptr(first), 0)
	if e != 0 {
		return e
	}
	return nil
}
