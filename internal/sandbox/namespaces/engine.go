package namespaces

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// engineNames are the container runtimes that this driver can drive, in the
// order in which they are tried.
var engineNames = []string{"runc", "crun"}

// errNoEngine is returned where the machine has no container runtime.
var errNoEngine = fmt.Errorf("neither %s is installed", strings.Join(engineNames, " nor "))

// engine is one container runtime of this machine.
type engine struct {
	name  string // one of engineNames
	path  string
	state string // where it keeps its own records
}

// findEngine returns the engine of this name, or errNoEngine.
func (r *Runtime) findEngine(name string) (*engine, error) {
	for _, known := range engineNames {
		if name != known {
			continue
		}
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoEngine, err)
		}
		return &engine{name: name, path: path, state: r.stateDir(name)}, nil
	}
	return nil, fmt.Errorf("container runtime %q is not known", name)
}

func (r *Runtime) stateDir(engine string) string { return filepath.Join(r.root, "state", engine) }

// run creates and starts the container that bundle describes and returns its
// init process's number. words receives what the container's process writes to
// standard error, and the engine's own complaints.
func (e *engine) run(ctx context.Context, id, bundle string, words *os.File) (int, error) {
	pidFile := filepath.Join(bundle, "pid")
	cmd := e.command(ctx, "run", "--detach", "--bundle", bundle, "--pid-file", pidFile, id)
	cmd.Stdout, cmd.Stderr = nil, words
	if err := cmd.Run(); err != nil {
		return 0, errors.Join(fmt.Errorf("%s: %w: %s", e.name, err, lastWords(words)), context.Cause(ctx))
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", e.name, err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s: its pid file holds %q", e.name, data)
	}
	return pid, nil
}

// delete removes all that the engine has of the container, ending it first. A
// container it does not know is no error.
func (e *engine) delete(ctx context.Context, id string) error {
	if _, err := os.Lstat(filepath.Join(e.state, id)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	out, err := e.command(ctx, "delete", "--force", id).CombinedOutput()
	if err != nil {
		return errors.Join(fmt.Errorf("%s: delete container: %w: %s", e.name, err, bytes.TrimSpace(out)), context.Cause(ctx))
	}
	return nil
}

// command prepares a call. What it leaves half done when ctx ends is removed
// with the box.
func (e *engine) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, e.path, append([]string{"--root", e.state}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C is meant for the server alone
	return cmd
}

// maxWords bounds what is kept of a guest's standard error, in bytes.
const maxWords = 8 << 10

// newWords returns a file for a guest's last words. It cannot grow, so that
// nothing inside fills the host's memory with it; writing more fails.
func newWords() (*os.File, error) {
	fd, err := unix.MemfdCreate("words", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a file for standard error: %w", err)
	}
	f := os.NewFile(uintptr(fd), "words")
	if err = f.Truncate(maxWords); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a file for standard error: %w", err), f.Close())
	}
	return f, nil
}

// lastWords returns what was written to such a file.
func lastWords(f *os.File) string {
	buf := make([]byte, maxWords)
	n, _ := f.ReadAt(buf, 0) // what cannot be read is not shown
	text, _, _ := bytes.Cut(buf[:n], []byte{0})
	return string(bytes.TrimSpace(text))
}
