package gvisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/specutils"
)

// Names that gVisor gives its processes in argv[0]. They are all that survives
// from the parent: gVisor clears the environment.
const (
	sentryName = "runsc-sandbox"
	goferName  = "runsc-gofer"
)

// Dispatch must be the first call of main. When this process was executed as
// one of gVisor's own processes it runs that and never returns; otherwise it
// does nothing.
//
// Only the three commands that make up a running box are linked in: the rest
// of gVisor's command line has no use for boxes that a Runtime manages, and
// its checkpoint helper alone weighs 47 MB.
func Dispatch() {
	if !isGVisor(os.Args) {
		return
	}
	if err := settle(os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	cli.Run(nil, map[util.SubCommand]string{
		new(sentrycmd.Boot):   "",
		new(sentrycmd.Umount): "",
		new(cmd.Gofer):        "",
	}, nil)
}

// settle makes one of gVisor's processes ready.
func settle(args []string) error {
	name := filepath.Base(args[0])
	if name == sentryName || name == goferName {
		if err := closeStrays(args); err != nil {
			return fmt.Errorf("close inherited files: %w", err)
		}
		collectLater()
	}
	if name == sentryName {
		leaveOutTracePoints()
		if err := useSmallUmounter(); err != nil {
			return err
		}
	}
	return registerSeccomp()
}

// isGVisor reports whether a command line is one of gVisor's. The sentry runs
// its unmounter under the path of the executable, without a name of its own.
func isGVisor(args []string) bool {
	if len(args) == 0 {
		return false
	}
	return strings.HasPrefix(filepath.Base(args[0]), "runsc") ||
		args[0] == "/proc/self/exe" && len(args) > 1 && args[1] == "umount"
}

// useSmallUmounter replaces what a sentry executes to unmount its /proc once it
// has given up the right to do so itself: this whole program a second time,
// which takes a fifth of the processor time of its start. The program is
//
//	if (read(3, buf, 1) != 1) exit(1);            // the sentry is ready
//	exit(umount2(argv[3], MNT_DETACH) != 0);
//
// where the command line is PROGRAM umount --sync-fd=3 /proc. The sentry checks
// the result. Without cgo it executes nothing else.
func useSmallUmounter() error {
	fd, err := unix.MemfdCreate("umount", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("create umounter: %w", err)
	}
	if _, err := unix.Write(fd, program(umountCode)); err != nil {
		return fmt.Errorf("write umounter: %w", err)
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal umounter: %w", err)
	}
	specutils.ExePath = fmt.Sprintf("/proc/self/fd/%d", fd) // never closed
	return nil
}

var fileFlag = regexp.MustCompile(`^--[a-z-]+-fds?=([0-9]+)$`)

// closeStrays closes the files that this process inherited beyond those its
// command line names: something in the server may have opened them without
// marking them as its own. What the Go runtime has opened since is marked.
func closeStrays(args []string) error {
	last := 2
	for _, arg := range args {
		if m := fileFlag.FindStringSubmatch(arg); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				return err
			}
			last = max(last, n)
		}
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= last {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			err = unix.Close(fd)
		}
		if err != nil && !errors.Is(err, unix.EBADF) { // the directory itself is closed by now
			return err
		}
	}
	return nil
}
