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
	if name := filepath.Base(os.Args[0]); name == sentryName || name == goferName {
		if err := closeStrays(os.Args); err != nil {
			fmt.Fprintf(os.Stderr, "%s: close inherited files: %v\n", name, err)
			os.Exit(1)
		}
	}
	registerSeccomp()
	cli.Run(nil, map[util.SubCommand]string{
		new(sentrycmd.Boot):   "",
		new(sentrycmd.Umount): "",
		new(cmd.Gofer):        "",
	}, nil)
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
