package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/internal/app"
)

// cli is the command line: all that its commands share with the world outside.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            map[string]string

	run    func(context.Context, app.Config) error
	doctor func(context.Context, app.Config) (app.Report, error)

	server server
	json   bool
	// parsed is set once a command runs; errors before that are errors of usage.
	parsed bool
}

// environment turns "NAME=value" lines into a map.
func environment(lines []string) map[string]string {
	env := make(map[string]string, len(lines))
	for _, line := range lines {
		if name, value, ok := strings.Cut(line, "="); ok {
			env[name] = value
		}
	}
	return env
}

// main runs one command line and returns the exit code.
func (c *cli) main(ctx context.Context, args []string) int {
	root := c.root()
	root.SetArgs(args)
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !c.parsed {
		err = usageError{fmt.Errorf("%w (see '%s --help')", err, cmd.CommandPath())}
	}
	var status exitStatus
	if !errors.As(err, &status) || status.message != "" {
		fmt.Fprintln(c.stderr, "moat: "+oneLine(err))
	}
	return exitCode(cmd, err)
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "moat",
		Short: "Sandboxes for AI agents, with control over what they reach",
		Long: "moat runs isolated sandboxes behind the E2B API and decides what each may reach on\n" +
			"the internet. 'moat serve' is the server; the other commands use it.",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		c.serveCommand(),
		c.doctorCommand(),
		c.sandboxCommand(),
		c.execCommand(),
		c.urlCommand(),
		c.netCommand(),
		c.tokenCommand(),
		c.secretCommand(),
		c.templateCommand(),
		c.keyCommand(),
		c.caCommand(),
		c.versionCommand(),
	)
	c.noteParsed(asGroup(root))
	return root
}

// noteParsed makes each command note that it got as far as running.
func (c *cli) noteParsed(cmd *cobra.Command) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c.parsed = true
		return run(cmd, args)
	}
	for _, child := range cmd.Commands() {
		c.noteParsed(child)
	}
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short}
	cmd.AddCommand(commands...)
	return asGroup(cmd)
}

// asGroup makes a command show its help when it is called alone, and refuse
// what is none of its subcommands.
func asGroup(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("%q is no command of '%s'", args[0], cmd.CommandPath())
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// oneLine writes an error in one line, also one that was joined from several.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	return printable(strings.Join(lines, "; "))
}
