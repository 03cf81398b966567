package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/client"
)

const execName = "exec"

// execOptions are the flags of `moat exec`.
type execOptions struct {
	interactive, terminal bool
	user, dir             string
	env                   []string
	timeout               time.Duration
}

func (c *cli) execCommand() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   execName + " [flags] ID [--] [COMMAND [ARG...]]",
		Short: "Run a command in a sandbox",
		Long: "Run a command in a sandbox and exit as it does. Standard input, output and error are\n" +
			"the command's. With -t it gets a terminal; without a COMMAND that is a login shell.\n" +
			"Exits with 124 when --timeout passed, 128 and the signal's number when one ended the\n" +
			"command, and 125 when moat itself failed.",
		Example:           "  moat exec -it ID\n  moat exec ID -- python3 -c 'print(1)'\n  tar c . | moat exec ID -- tar x -C /tmp",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			command, err := o.command(args[1:], c.env)
			if err != nil {
				return usageError{err}
			}
			return c.exec(cmd.Context(), o, args[0], command)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the id is the command's
	flags.BoolVarP(&o.interactive, "interactive", "i", true, "pass standard input on; -i=false gives an empty one")
	flags.BoolVarP(&o.terminal, "tty", "t", false, "give the command a terminal")
	flags.StringVarP(&o.user, "user", "u", "", "run as this `user` of the sandbox")
	flags.StringVarP(&o.dir, "workdir", "w", "", "run in this `directory`")
	flags.StringArrayVarP(&o.env, "env", "e", nil, "`NAME=value` for the command, or NAME to pass on one's own; repeatable")
	flags.DurationVar(&o.timeout, "timeout", 0, "kill the command after this long; 0 for never")
	return c.addServerFlags(cmd)
}

// loginShell starts the best shell that the template has.
const loginShell = "if command -v bash >/dev/null; then exec bash -il; fi; exec sh -il"

// command turns the words after the id into what to run.
func (o execOptions) command(words []string, env map[string]string) (client.Command, error) {
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	switch {
	case o.timeout < 0:
		return client.Command{}, fmt.Errorf("--timeout: %s is negative", o.timeout)
	case len(words) == 0 && !o.terminal:
		return client.Command{}, errors.New("a command is needed, or -t for a shell")
	case len(words) == 0:
		words = []string{"/bin/sh", "-c", loginShell}
	case words[0] == "":
		return client.Command{}, errors.New("the command's name is empty")
	}
	given, err := parsePairs("--env", o.env, env)
	if err != nil {
		return client.Command{}, err
	}
	if o.terminal {
		given = withTerminal(given, env["TERM"])
	}
	return client.Command{Args: words, Env: given, Dir: o.dir}, nil
}

// withTerminal adds what programs ask about the terminal, unless it was given.
func withTerminal(given map[string]string, term string) map[string]string {
	env := map[string]string{"TERM": first(term, "xterm-256color"), "LANG": "C.UTF-8"}
	for name, value := range given {
		env[name] = value
	}
	return env
}

func (c *cli) exec(ctx context.Context, o execOptions, id string, command client.Command) error {
	// A reader that goes away shall end the command, not just us. The same goes
	// for the terminal that we run in, unless nohup says otherwise.
	signal.Ignore(syscall.SIGPIPE)
	if !signal.Ignored(syscall.SIGHUP) {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
		defer stop()
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	// Only connecting gives the daemon's token; no timeout extends nothing.
	connected, err := server.Connect(ctx, id, 0)
	if err != nil {
		return err
	}
	box := server.Open(connected).As(o.user)
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	if o.interactive {
		command.Stdin = c.stdin
	}
	command.Stdout, command.Stderr = c.stdout, c.stderr
	if o.terminal {
		return result(c.runInTerminal(ctx, box, command))
	}
	return result(box.Commands.Run(ctx, command))
}

// result turns a command's end into this program's.
func result(exit client.Exit, err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return exitStatus{code: exitTimeout, message: "the command was killed: its time is over"}
	case errors.Is(err, context.Canceled):
		return exitStatus{code: exitInterrupt}
	case errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrClosedPipe):
		return exitStatus{code: exitPipe}
	case err != nil:
		return err
	case exit.Code < 0:
		return exitStatus{code: exitSignal + signalNumber(exit.Status)}
	case exit.Code > 0:
		return exitStatus{code: exit.Code}
	}
	return nil
}

// signalNumber reads a status such as "signal: killed"; 0 where it is no signal
// that Linux knows.
func signalNumber(status string) int {
	name, _ := strings.CutPrefix(status, "signal: ")
	name, _ = strings.CutSuffix(name, " (core dumped)")
	for n := 1; n < 32; n++ {
		if syscall.Signal(n).String() == name {
			return n
		}
	}
	return 0
}
