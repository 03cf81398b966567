package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

func (c *cli) keyCommand() *cobra.Command {
	return c.addSocketFlag(group("key", "Manage API keys, over the operator's socket",
		c.keyCreateCommand(), c.keyListCommand(), c.keyRemoveCommand()))
}

func (c *cli) keyCreateCommand() *cobra.Command {
	var spec api.NewKey
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make an API key and print it, this once",
		Args:  cobra.NoArgs,
		RunE: c.onSocket(func(ctx context.Context, server *client.Client, _ []string) error {
			made, err := server.CreateKey(ctx, spec)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(made)
			}
			_, err = fmt.Fprintln(c.stdout, made.Secret)
			return err
		}),
	}
	cmd.Flags().StringVar(&spec.Name, "name", "", "a `name` to know it by")
	cmd.Flags().StringVar(&spec.Team, "team", "", "the `team` whose sandboxes it is for (default: one of its own)")
	return c.addJSONFlag(cmd)
}

func (c *cli) keyListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the API keys",
		Args:  cobra.NoArgs,
		RunE: c.onSocket(func(ctx context.Context, server *client.Client, _ []string) error {
			keys, err := server.Keys(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(keys)
			}
			t := newTable(c.stdout, "ID", "PREFIX", "TEAM", "NAME", "CREATED")
			for _, k := range keys {
				t.row(k.ID, k.Prefix, k.Team, k.Name, stamp(k.CreatedAt))
			}
			return t.flush()
		}),
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) keyRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rm ID...",
		Short:             "Revoke API keys",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeKeys,
		RunE: c.onSocket(func(ctx context.Context, server *client.Client, args []string) error {
			return each(args, func(id string) error { return server.DeleteKey(ctx, id) })
		}),
	}
}
