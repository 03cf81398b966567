package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

func (c *cli) netCommand() *cobra.Command {
	return c.addServerFlags(group("net", "See and change what sandboxes reach",
		c.netShowCommand(), c.netLogCommand(), c.netExplainCommand(),
		c.netAllowCommand(), c.netDenyCommand(), c.netRevokeCommand(), c.netSetCommand()))
}

func (c *cli) netShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show ID",
		Short:             "Show what a sandbox may reach",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			state, err := server.Network(ctx, args[0])
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(state)
			}
			return c.printState(state)
		}),
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) printState(s api.NetworkState) error {
	granted := 0 // entries of grants come last, and are shown with them
	for _, g := range s.Grants {
		granted += len(g.AllowOut)
	}
	own := s.Effective.AllowOut[:max(0, len(s.Effective.AllowOut)-granted)]
	t := newTable(c.stdout)
	t.row("generation", fmt.Sprint(s.Generation))
	t.row("allowed", strings.Join(own, " "))
	t.row("denied", strings.Join(s.Effective.DenyOut, " "))
	t.row("all else", map[string]string{"allow": "allowed", "deny": "denied"}[s.Effective.Default])
	if s.Network != nil && s.Network.Rules != nil {
		for _, line := range ruleLines(*s.Network.Rules) {
			t.row("rule", line)
		}
	}
	if s.Network != nil && s.Network.EgressProxy != nil {
		t.row("proxy", s.Network.EgressProxy.Address)
	}
	if s.Network != nil && s.Network.DNS != "" {
		t.row("dns", string(s.Network.DNS))
	}
	for _, g := range s.Grants {
		left := max(0, time.Until(g.ExpiresAt)).Round(time.Second)
		t.row("granted", fmt.Sprintf("%s for %s more, grant %s", strings.Join(g.AllowOut, " "), left, g.ID))
	}
	for _, w := range s.Warnings {
		t.row("warning", warning(w))
	}
	return t.flush()
}

func warning(w api.NetworkWarning) string { return w.Entry + " in " + w.Field + " " + w.Text }

func (c *cli) netSetCommand() *cobra.Command {
	var document documentFlags
	var options client.NetworkOptions
	cmd := &cobra.Command{
		Use:   "set ID",
		Short: "Replace what a sandbox may reach",
		Long: "Replace what a sandbox may reach. Nothing of the document before remains: without a flag the\n" +
			"whole internet is reachable. Temporary grants end, unless --keep-grants is given.",
		Example: "  moat net set ID --no-internet --allow api.example.com,1.1.1.1\n" +
			"  moat net set ID --set-header 'api.example.com Authorization: Bearer ${e2b.secrets.KEY}'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			update, err := document.update()
			if err != nil {
				return usageError{err}
			}
			receipt, err := server.SetNetworkIf(ctx, args[0], update, options)
			if err != nil {
				return err
			}
			c.tell(receipt)
			return nil
		}),
	}
	document.declare(cmd)
	cmd.Flags().BoolVar(&options.KeepGrants, "keep-grants", false, "leave temporary grants alone")
	cmd.Flags().Uint64Var(&options.IfGeneration, "if-generation", 0, "only if the present `number` is this")
	return cmd
}

// tell says on standard error what a change did, where somebody may miss a
// connection.
func (c *cli) tell(r client.Receipt) {
	if r.FlowsCut == 1 {
		fmt.Fprintln(c.stderr, "moat: 1 live flow was cut")
	} else if r.FlowsCut > 1 {
		fmt.Fprintf(c.stderr, "moat: %d live flows were cut\n", r.FlowsCut)
	}
}

func (c *cli) netAllowCommand() *cobra.Command {
	var length time.Duration
	cmd := &cobra.Command{
		Use:   "allow ID ENTRY...",
		Short: "Let a sandbox reach addresses, CIDRs or names, perhaps for a while",
		Long: "Let a sandbox reach addresses, CIDRs, names, *.names. Other entries stay as they are. With\n" +
			"--for they are reachable for that long and then no more; the grant's id is printed.",
		Example:           "  moat net allow ID example.com '*.example.com' --for 10m",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			if length != 0 {
				return c.grant(ctx, server, args[0], args[1:], length)
			}
			return c.edit(ctx, server, args[0], api.NetworkEdit{Allow: args[1:]})
		}),
	}
	cmd.Flags().DurationVar(&length, "for", 0, "how long, at most a day; without it for good")
	return c.addJSONFlag(cmd)
}

func (c *cli) grant(ctx context.Context, server *client.Client, id string, entries []string, length time.Duration) error {
	if length < time.Second {
		return usageError{fmt.Errorf("--for: %s is less than a second", length)}
	}
	grant, err := server.Grant(ctx, id, entries, length)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(grant)
	}
	_, err = fmt.Fprintln(c.stdout, grant.ID)
	return err
}

// edit changes entries and warns of those that do not do what they shall.
func (c *cli) edit(ctx context.Context, server *client.Client, id string, edit api.NetworkEdit) error {
	state, receipt, err := server.EditNetwork(ctx, id, edit)
	if err != nil {
		return err
	}
	c.tell(receipt)
	mentioned := make(map[string]bool)
	for _, entry := range append(edit.Allow, edit.Deny...) {
		mentioned[entry] = true
	}
	for _, w := range state.Warnings {
		if mentioned[w.Entry] {
			fmt.Fprintln(c.stderr, "moat: "+printable(warning(w)))
		}
	}
	if c.json {
		return c.printJSON(state)
	}
	return nil
}

func (c *cli) netDenyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deny ID ENTRY...",
		Short: "Keep a sandbox from addresses, CIDRs or names",
		Long: "Keep a sandbox from addresses, CIDRs or names. What was allowed by the same entry is so no\n" +
			"more; live connections are cut. What would stay reachable by another entry is refused.",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			return c.edit(ctx, server, args[0], api.NetworkEdit{Deny: args[1:]})
		}),
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) netRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "revoke ID GRANT...",
		Short:             "End temporary grants before their time",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			return each(args[1:], func(grant string) error {
				receipt, err := server.Revoke(ctx, args[0], grant)
				if err == nil {
					c.tell(receipt)
				}
				return err
			})
		}),
	}
}

// errNothingAsked is a command line without a question.
var errNothingAsked = errors.New("a target or a candidate (--allow, --deny, --no-internet, --set-header) is needed")
