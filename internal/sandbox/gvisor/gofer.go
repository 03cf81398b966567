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
func (b *box) startGofer(spec *specs.Spec, mounts specutils.GoferMountConfFlags) (*os.File, *process, error) {
	encoded, err := json.Marshal(spec)
	if err != nil {
		return nil, nil, fmt.Errorf("encode guest container: %w", err)
	}
	sentryEnd, goferEnd, err := socketPair("gofer connection")
	if err != nil {
		return nil, nil, err
	}
	// By this connection a gofer could ask for mounts that it may not open
	// itself. Our specs have none: nobody listens.
	rpcOurs, rpcTheirs, err := socketPair("gofer requests")
	if err != nil {
		sentryEnd.Close()
		goferEnd.Close()
		return nil, nil, err
	}
	defer rpcOurs.Close()

	var files fileSet
	defer files.close()
	files.addMem("spec-fd", encoded)
	files.addMem("mounts-fd", nil) // where it writes the mounts it resolved: none
	files.add("io-fds", goferEnd, nil)
	files.add("rpc-fd", rpcTheirs, nil)
	if files.err != nil {
		sentryEnd.Close()
		return nil, nil, files.err
	}
	p, err := launch{
		name:    goferName,
		flags:   b.flags,
		command: []string{"gofer", "--bundle=" + b.dir, "--gofer-mount-confs=" + mounts.String()},
		id:      guestContainer,
		files:   files.donations,
		netns:   b.runtime.netns,
		group:   b.group,
		attr: syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID,
		},
	}.start()
	if err != nil {
		sentryEnd.Close()
		return nil, nil, err
	}
	return sentryEnd, p, nil
}

// socketPair returns both ends of a connection.
func socketPair(name string) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("create %s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
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
		root, b.gofer, err = b.startGofer(spec, mounts)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open root: %w", err), guest.Close())
	}
	return []*os.File{root, guest}, nil
}
