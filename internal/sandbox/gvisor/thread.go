package gvisor

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThrowawayThread runs fn on an operating system thread that ends with it:
// whatever namespace or cgroup fn enters, nothing else in this process does.
//
// The process's main thread cannot end. A goroutine that happens to run there
// holds it while another one, which must then be elsewhere, does the work.
func onThrowawayThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThrowawayThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn() // never unlocked, so the thread is not reused
	}()
	return <-done
}

// newNetNS returns a new, empty network namespace that lives as long as it is
// open or something runs in it. It is never mounted anywhere.
func newNetNS() (*os.File, error) {
	var ns *os.File
	err := onThrowawayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		var err error
		ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		return err
	})
	return ns, err
}
