package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/moat-sandbox/moat/client"
)

func (c *cli) secretCommand() *cobra.Command {
	return c.addServerFlags(group("secret", "Manage values that sandboxes use without seeing them",
		c.secretSetCommand(), c.secretListCommand(), c.secretRemoveCommand()))
}

func (c *cli) secretSetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME",
		Short: "Create or replace a secret; the value comes from standard input",
		Long: "Create or replace a secret. The value comes from standard input, without the newline at\n" +
			"its end; at a terminal it is asked for and not shown. It is kept sealed and never comes\n" +
			"back. Rules about requests refer to it as ${e2b.secrets.NAME}; those of running sandboxes\n" +
			"use the new value at once.",
		Example:           "  moat secret set openai < key.txt",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeSecrets,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			value, err := c.readSecret()
			if err != nil {
				return err
			}
			_, err = server.SetSecret(ctx, args[0], value)
			return err
		}),
	}
}

// maxSecret is more than any server takes, in bytes.
const maxSecret = 1 << 20

// readSecret reads a value that no argument should hold: other users of the
// machine see those.
func (c *cli) readSecret() (string, error) {
	if in, ok := c.stdin.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		fmt.Fprint(c.stderr, "value: ")
		raw, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(c.stderr)
		if err != nil {
			return "", fmt.Errorf("read value: %w", err)
		}
		return string(raw), nil
	}
	raw, err := io.ReadAll(io.LimitReader(c.stdin, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("read value: %w", err)
	}
	if len(raw) > maxSecret {
		return "", errors.New("read value: it is too long for a secret")
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r"), nil
}

func (c *cli) secretListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the secrets by name",
		Args:  cobra.NoArgs,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, _ []string) error {
			secrets, err := server.Secrets(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(secrets)
			}
			t := newTable(c.stdout, "NAME", "CREATED", "UPDATED")
			for _, s := range secrets {
				t.row(s.Name, stamp(s.CreatedAt), stamp(s.UpdatedAt))
			}
			return t.flush()
		}),
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) secretRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME...",
		Short:             "Remove secrets; requests that need them fail from then on",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeSecrets,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			return each(args, func(name string) error { return server.DeleteSecret(ctx, name) })
		}),
	}
}

func (c *cli) completeSecrets(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return suggest(cmd, c.connect, func(ctx context.Context, server *client.Client) (found []cobra.Completion, err error) {
		secrets, err := server.Secrets(ctx)
		for _, s := range secrets {
			found = append(found, cobra.Completion(s.Name))
		}
		return found, err
	})
}
