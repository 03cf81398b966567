package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
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
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := c.operator()
			if err != nil {
				return err
			}
			made, err := server.CreateKey(cmd.Context(), spec)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(made)
			}
			_, err = fmt.Fprintln(c.stdout, made.Secret)
			return err
		},
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
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := c.operator()
			if err != nil {
				return err
			}
			keys, err := server.Keys(cmd.Context())
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
		},
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) keyRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rm ID...",
		Short:             "Revoke API keys",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeKeys,
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.operator()
			if err != nil {
				return err
			}
			var errs []error
			for _, id := range args {
				errs = append(errs, server.DeleteKey(cmd.Context(), id))
			}
			return errors.Join(errs...)
		},
	}
}
