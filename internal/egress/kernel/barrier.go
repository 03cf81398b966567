package kernel

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// barrier waits for packets. The kernel handles a packet inside one RCU section,
// so that a packet judged by earlier rules is dealt with, and whatever flow it
// began is known, once all sections of that moment have ended.
//
// Asked for that directly (membarrier), the kernel takes its time, about 10 ms.
// It is in a hurry where it has to wait while it holds the lock of all network
// interfaces; there it has every processor leave its section at once. Taking a
// queue off a TUN interface is such a place (synchronize_net in tun_detach), and
// has no other effect. The interface is in a namespace of its own and vanishes
// with the barrier.
type barrier struct {
	mu  sync.Mutex
	tun *os.File // nil where there are no TUN interfaces
}

const tunDevice = "/dev/net/tun"

// openBarrier returns a barrier in any case. An error says why it is a slow one.
func openBarrier() (*barrier, error) {
	b := &barrier{}
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if b.tun, err = os.OpenFile(tunDevice, os.O_RDWR, 0); err != nil {
			return err
		}
		return b.queue(unix.TUNSETIFF, unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_MULTI_QUEUE)
	})
	if err != nil {
		return &barrier{}, errors.Join(fmt.Errorf("make an interface to wait with: %w", err), b.close())
	}
	return b, nil
}

func (b *barrier) close() error {
	if b.tun == nil {
		return nil
	}
	return b.tun.Close()
}

// queue does something to the interface's only queue.
func (b *barrier) queue(request uint, flags uint16) error {
	ifreq, err := unix.NewIfreq("wait")
	if err != nil {
		return err
	}
	ifreq.SetUint16(flags)
	return os.NewSyscallError("ioctl", unix.IoctlIfreq(int(b.tun.Fd()), request, ifreq))
}

// wait returns when every packet that was judged by earlier rules has been dealt
// with, so that none of them can still begin a flow.
func (b *barrier) wait() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tun == nil || b.detachAndAttach() != nil {
		waitPatiently()
	}
}

func (b *barrier) detachAndAttach() error {
	if err := b.queue(unix.TUNSETQUEUE, unix.IFF_DETACH_QUEUE); err != nil {
		return err
	}
	return b.queue(unix.TUNSETQUEUE, unix.IFF_ATTACH_QUEUE)
}

func waitPatiently() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		// Not on offer (nohz_full, seccomp). A packet takes microseconds.
		time.Sleep(20 * time.Millisecond)
	}
}
