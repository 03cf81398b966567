package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

func (c *cli) urlCommand() *cobra.Command {
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "url ID PORT",
		Short: "Print the public URL of a port in a sandbox",
		Long: "Print the public URL of a port in a sandbox. With --for it is a link that opens a private\n" +
			"port to whoever follows it in a browser, until it expires. 'moat token rotate' revokes\n" +
			"all links of a sandbox.",
		Example:           "  moat url ID 8080\n  moat url --for 15m ID 8080",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: c.completeSandboxes,
	}
	flag := newValue(&life, kindText, "", func(text string) (time.Duration, error) {
		if text == "" {
			return 0, nil
		}
		return parseLifetime(text)
	})
	cmd.Flags().Var(flag, "for", "make a link that is good for this `duration`, a week at most")
	cmd.RunE = c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
		port, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil || port == 0 {
			return usageError{fmt.Errorf("%q is not a port between 1 and 65535", args[1])}
		}
		if life != 0 {
			made, err := server.Link(ctx, args[0], int(port), life)
			if err != nil {
				return err
			}
			return c.printURL(made.URL, made)
		}
		detail, err := server.Sandbox(ctx, args[0])
		if err != nil {
			return err
		}
		box := server.Open(api.Sandbox{SandboxID: detail.SandboxID, Domain: detail.Domain})
		plain := box.URL(int(port))
		return c.printURL(plain, map[string]string{"url": plain})
	})
	return c.addJSONFlag(c.addServerFlags(cmd))
}

func (c *cli) printURL(url string, answer any) error {
	if c.json {
		return c.printJSON(answer)
	}
	_, err := fmt.Fprintln(c.stdout, url)
	return err
}
