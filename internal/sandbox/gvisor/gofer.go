package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/specutils"
)

// startGofer starts the process that serves the directory in spec.Root to the
// sentry, and returns the sentry's end of their connection. The gofer sees
// nothing but that directory, and the directory only read-only: the writable
// layer is the sentry's.
func (b *box) startGofer(spec *specs.Spec, mounts specutils.GoferMountConfFlags) (*os.File, error) {
	encoded, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode guest container: %w", err)
	}
	var files fileSet
	defer files.close()
	files.addMem("spec-fd", encoded)
	files.addMem("mounts-fd", nil) // where it writes the mounts it resolved: none
	sentryEnd := files.addSocket("io-fds")
	// By this connection a gofer could ask for mounts that it may not open
	// itself. Our specs have none, so nobody listens.
	unheard := files.addSocket("rpc-fd")
	defer closeAll([]*os.File{unheard})
	if files.err != nil {
		closeAll([]*os.File{sentryEnd})
		return nil, files.err
	}
	b.gofer, err = launch{
		exe:     b.runtime.exe,
		name:    goferName,
		flags:   b.flags,
		command: []string{"gofer", "--bundle=" + b.dir, "--gofer-mount-confs=" + mounts.String()},
		id:      guestContainer,
		files:   files.donations,
		stderr:  b.held.words,
		netns:   b.runtime.netns,
		group:   b.group,
		attr: syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID,
		},
	}.start()
	if err != nil {
		sentryEnd.Close()
		return nil, err
	}
	return sentryEnd, nil
}

// guestFiles opens what backs the guest container's mounts, in their order:
// the root, which is an image or served by a gofer, and the guest's own image.
func (b *box) guestFiles(rootImage, guestImage string, spec *specs.Spec, mounts specutils.GoferMountConfFlags) (files []*os.File, err error) {
	guest, err := os.Open(guestImage)
	if err != nil {
		return nil, fmt.Errorf("open guest image: %w", err)
	}
	var root *os.File
	if rootImage != "" {
		root, err = os.Open(rootImage)
	} else {
		root, err = b.startGofer(spec, mounts)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open root: %w", err), guest.Close())
	}
	return []*os.File{root, guest}, nil
}
