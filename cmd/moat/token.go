package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

func (c *cli) tokenCommand() *cobra.Command {
	return c.addServerFlags(group("token", "Show and replace the tokens that open private public URLs",
		c.tokenShowCommand(), c.tokenRotateCommand()))
}

func (c *cli) tokenShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Print the traffic token of a sandbox",
		Long: "Print the traffic token of a sandbox that was created with --private. Requests to its\n" +
			"public URLs carry it in the header E2b-Traffic-Access-Token.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			connected, err := server.Connect(ctx, args[0], 0) // the end of its life stays
			if err != nil {
				return err
			}
			if connected.TrafficAccessToken == nil {
				return fmt.Errorf("sandbox %s is open to everybody: it has no traffic token", connected.SandboxID)
			}
			return c.printToken(api.TrafficToken{TrafficAccessToken: *connected.TrafficAccessToken})
		}),
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) tokenRotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "rotate ID",
		Short:             "Replace the traffic token of a sandbox and print the new one",
		Long:              "Replace the traffic token of a sandbox and print the new one. The old one lets no\nrequest in from then on, and what it had let in is cut.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			token, err := server.RotateTrafficToken(ctx, args[0])
			if err != nil {
				return err
			}
			return c.printToken(token)
		}),
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) printToken(token api.TrafficToken) error {
	if c.json {
		return c.printJSON(token)
	}
	_, err := fmt.Fprintln(c.stdout, token.TrafficAccessToken)
	return err
}
