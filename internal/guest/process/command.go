package process

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	pb "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/account"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// toolsDir holds programs that a template adds for compatibility.
const toolsDir = "/opt/moat/bin"

// command is a process before it runs.
type command struct {
	user account.User
	path string // of the program; need not exist
	argv []string
	dir  string
	env  []string
}

// newCommand works out what to run. Errors are ready to be returned from a
// handler. That the program does not exist is none: it becomes an exit status.
func newCommand(caller wire.Caller, config *pb.ProcessConfig, path string) (*command, error) {
	if err := checkConfig(config); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	env := environment(caller, config.GetEnvs(), path)
	c := &command{
		user: caller.User,
		argv: append([]string{config.GetCmd()}, config.GetArgs()...),
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		c.env = append(c.env, name+"="+env[name])
	}
	err := c.user.Do(func() (err error) {
		if c.dir, err = directory(caller, config.GetCwd()); err == nil {
			c.path = look(config.GetCmd(), env["PATH"], c.dir)
		}
		return err
	})
	return c, err
}

// checkConfig finds what the kernel would refuse or silently misread. Values
// are not repeated in errors: they may be secret.
func checkConfig(config *pb.ProcessConfig) error {
	if config.GetCmd() == "" {
		return errors.New("process.cmd is empty")
	}
	for _, arg := range append([]string{config.GetCmd(), config.GetCwd()}, config.GetArgs()...) {
		if strings.ContainsRune(arg, 0) {
			return errors.New("process: cmd, args or cwd contains a NUL byte")
		}
	}
	for name, value := range config.GetEnvs() {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("process.envs: %q is no usable name or has a value with a NUL byte", name)
		}
	}
	return nil
}

// environment merges, later ones winning: what the user's account gives, the
// session's variables, the request's.
func environment(caller wire.Caller, request map[string]string, path string) map[string]string {
	if info, err := os.Stat(toolsDir); err == nil && info.IsDir() {
		path = toolsDir + ":" + path
	}
	env := map[string]string{
		"PATH":    path,
		"HOME":    caller.User.Home,
		"USER":    caller.User.Name,
		"LOGNAME": caller.User.Name,
	}
	maps.Copy(env, caller.Settings.Env())
	maps.Copy(env, request)
	return env
}

// directory returns where the command runs. A directory that was asked for, or
// is the session's default, must exist; users without a home start in "/".
func directory(caller wire.Caller, cwd string) (string, error) {
	dir := caller.Settings.Path(caller.User, cwd)
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return dir, nil
	case err == nil:
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' is not a directory", dir))
	case errors.Is(err, fs.ErrNotExist) && cwd == "" && dir == filepath.Clean(caller.User.Home):
		return "/", nil
	case errors.Is(err, fs.ErrNotExist):
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' does not exist", dir))
	}
	return "", wire.FileError(fmt.Errorf("cwd: %w", err))
}

// look finds a program as a shell would. What it cannot find it returns
// unchanged: starting that fails with the right error.
func look(name, path, dir string) string {
	if strings.ContainsRune(name, '/') {
		return name
	}
	for _, in := range filepath.SplitList(path) {
		if !filepath.IsAbs(in) {
			in = filepath.Join(dir, in)
		}
		candidate := filepath.Join(in, name)
		if info, err := os.Stat(candidate); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return candidate
		}
	}
	return name
}

// viaShell has the shell run the same program: its error message and exit
// status (127, 126) are what callers know for a program that cannot be run.
func (c *command) viaShell() *command {
	shell := *c
	shell.path = "/bin/sh"
	shell.argv = append([]string{"sh", "-c", `exec "$@"`, "sh"}, c.argv...)
	return &shell
}

// unrunnable reports whether starting a program failed because of the program.
func unrunnable(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, syscall.ENOEXEC) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR)
}
