package socket

import (
	"context"
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// Alarm is a descriptor that becomes readable when a context ends, for who waits
// in the kernel for descriptors.
type Alarm int

// NewAlarm returns an alarm, to be closed with Close.
func NewAlarm() (Alarm, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return Alarm(fd), os.NewSyscallError("eventfd", err)
}

// Set has the alarm go off when ctx ends. Nothing touches the descriptor any more
// once stop has returned.
func (a Alarm) Set(ctx context.Context) (stop func()) {
	rung := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(rung)
		_, _ = unix.Write(int(a), binary.NativeEndian.AppendUint64(nil, 1)) // fails only if it is readable already
	})
	return func() {
		if !cancel() {
			<-rung
		}
	}
}
