package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

func (c *cli) netCommand() *cobra.Command {
	return c.addServerFlags(group("net", "See and change what sandboxes reach",
		c.netLogCommand(), c.netExplainCommand()))
}

func (c *cli) netExplainCommand() *cobra.Command {
	var protocol string
	cmd := &cobra.Command{
		Use:   "explain ID ADDRESS[:PORT]",
		Short: "Say whether a sandbox may reach an address, and why",
		Long: "Say whether a sandbox may reach an address, and why. The policy that the kernel's rules\n" +
			"are made from answers; nothing is sent. An IPv6 address with a port stands in brackets.",
		Example:           "  moat net explain ID 8.8.8.8:53 --protocol udp",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			explanation, err := server.Explain(ctx, args[0], flowTo(args[1], protocol))
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(explanation)
			}
			_, err = fmt.Fprintf(c.stdout, "%s: %s\n", explanation.Verdict, explanation.Reason)
			return err
		}),
	}
	cmd.Flags().StringVar(&protocol, "protocol", "tcp", "`protocol`: tcp, udp or icmp")
	return c.addJSONFlag(cmd)
}

// flowTo reads a target. What is no address is left for the server to refuse.
func flowTo(target, protocol string) api.Flow {
	if ap, err := netip.ParseAddrPort(target); err == nil {
		return api.Flow{Address: ap.Addr().String(), Port: int64(ap.Port()), Protocol: protocol}
	}
	return api.Flow{Address: target, Protocol: protocol}
}
