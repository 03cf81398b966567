package lab

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// errGoexit is returned when a function left its thread without returning,
// as testing.T.FailNow does.
var errGoexit = errors.New("function exited without returning")

// onThrowawayThread runs fn on an operating system thread of its own, which
// ends with fn: whatever namespace fn enters, no other goroutine ever sees it.
//
// The process's main thread cannot end. A goroutine that happens to run there
// holds it while another one, which must then be elsewhere, does the work.
func onThrowawayThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() { done <- err }()
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			err = onThrowawayThread(fn)
			return
		}
		err = fn() // never unlocked, so the thread is not reused
	}()
	return <-done
}
