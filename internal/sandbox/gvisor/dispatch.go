package gvisor

import (
	"os"
	"path/filepath"
	"strings"

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
