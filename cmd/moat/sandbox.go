package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

func (c *cli) sandboxCommand() *cobra.Command {
	cmd := group("sandbox", "Create, list, inspect and end sandboxes",
		c.sandboxCreateCommand(), c.sandboxListCommand(), c.sandboxInfoCommand(), c.sandboxKillCommand(),
		c.urlCommand(), c.execCommand())
	cmd.Aliases = []string{"sb"}
	return c.addServerFlags(cmd)
}

func (c *cli) sandboxInfoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "info ID",
		Short:             "Describe a sandbox",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			detail, err := server.Sandbox(ctx, args[0])
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(detail)
			}
			return c.printDetail(detail)
		}),
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) printDetail(d api.SandboxDetail) error {
	t := newTable(c.stdout)
	t.row("id", d.SandboxID)
	t.row("template", strings.TrimSpace(d.TemplateID+" "+d.Alias))
	t.row("state", string(d.State))
	t.row("started", stamp(d.StartedAt))
	t.row("ends", stamp(d.EndAt))
	t.row("cpus", strconv.Itoa(d.CPUCount))
	t.row("memory", strconv.Itoa(d.MemoryMB)+" MiB")
	t.row("disk", strconv.Itoa(d.DiskSizeMB)+" MiB")
	t.row("internet", internet(d.AllowInternetAccess))
	if d.Network != nil {
		t.row("allowed", strings.Join(d.Network.AllowOut, " "))
		t.row("denied", strings.Join(d.Network.DenyOut, " "))
	}
	t.row("public URLs", audience(d.Network))
	if d.Network != nil && d.Network.MaskRequestHost != nil {
		t.row("host", *d.Network.MaskRequestHost)
	}
	t.row("metadata", pairs(d.Metadata))
	return t.flush()
}

func internet(flag *bool) string {
	switch {
	case flag == nil:
		return "on by default"
	case *flag:
		return "on"
	default:
		return "off"
	}
}

// audience says whom the public URLs are for.
func audience(n *api.Network) string {
	said := "for everybody"
	if n == nil {
		return said
	}
	if n.AllowPublicTraffic != nil && !*n.AllowPublicTraffic {
		said = "with the traffic token"
	}
	for _, port := range slices.Sorted(maps.Keys(n.Ports)) {
		said += ", " + port + " " + string(n.Ports[port])
	}
	return said
}

func (c *cli) sandboxListCommand() *cobra.Command {
	var filter client.Filter
	var metadata []string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List sandboxes, newest first",
		Args:  cobra.NoArgs,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, _ []string) (err error) {
			if filter.Metadata, err = parsePairs("--metadata", metadata, nil); err != nil {
				return usageError{err}
			}
			listed := []api.ListedSandbox{} // an empty list is [] in JSON
			for s, err := range server.Sandboxes(ctx, filter) {
				if err != nil {
					return err
				}
				listed = append(listed, s)
			}
			return c.printSandboxes(listed, quiet)
		}),
	}
	cmd.Flags().StringArrayVar(&metadata, "metadata", nil, "only those with this `key=value`; repeatable")
	cmd.Flags().StringVar(&filter.Template, "template", "", "only those of this `template`")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return c.addJSONFlag(cmd)
}

func (c *cli) printSandboxes(listed []api.ListedSandbox, quiet bool) error {
	if c.json {
		return c.printJSON(listed)
	}
	if quiet {
		for _, s := range listed {
			fmt.Fprintln(c.stdout, s.SandboxID)
		}
		return nil
	}
	t := newTable(c.stdout, "ID", "TEMPLATE", "STATE", "STARTED", "LEFT", "METADATA")
	for _, s := range listed {
		left := max(0, time.Until(s.EndAt)).Round(time.Second).String()
		t.row(s.SandboxID, first(s.Alias, s.TemplateID), string(s.State), stamp(s.StartedAt), left, pairs(s.Metadata))
	}
	return t.flush()
}

func (c *cli) sandboxKillCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "kill ID...",
		Short:             "End sandboxes",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeSandboxes,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
			return each(args, func(id string) error { return server.Kill(ctx, id) })
		}),
	}
}
