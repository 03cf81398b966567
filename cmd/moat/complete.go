package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/client"
)

// completionPatience is how long a shell may wait for suggestions. Where the
// server does not answer by then, or at all, there are none.
const completionPatience = time.Second

func (c *cli) completeSandboxes(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "kill" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return suggest(cmd, c.connect, func(ctx context.Context, server *client.Client) (found []cobra.Completion, err error) {
		for s, err := range server.Sandboxes(ctx, client.Filter{}) {
			if err != nil {
				return nil, err
			}
			found = append(found, cobra.CompletionWithDesc(s.SandboxID, printable(first(s.Alias, s.TemplateID))))
		}
		return found, nil
	})
}

func (c *cli) completeTemplates(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return suggest(cmd, c.operator, func(ctx context.Context, server *client.Client) (found []cobra.Completion, err error) {
		templates, err := server.Templates(ctx)
		for _, t := range templates {
			for _, name := range append(t.Names, t.ID) {
				found = append(found, cobra.CompletionWithDesc(name, printable(t.Source)))
			}
		}
		return found, err
	})
}

func (c *cli) completeKeys(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return suggest(cmd, c.operator, func(ctx context.Context, server *client.Client) (found []cobra.Completion, err error) {
		keys, err := server.Keys(ctx)
		for _, k := range keys {
			found = append(found, cobra.CompletionWithDesc(k.ID, printable(k.Name)))
		}
		return found, err
	})
}

// suggest asks the server for completions.
func suggest(
	cmd *cobra.Command, find func() (*client.Client, error),
	ask func(context.Context, *client.Client) ([]cobra.Completion, error),
) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	server, err := find()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer server.Close()
	found, err := ask(ctx, server)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}
