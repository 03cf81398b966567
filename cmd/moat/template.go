package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

func (c *cli) templateCommand() *cobra.Command {
	return c.addSocketFlag(group("template", "Manage what sandboxes are started from, over the operator's socket",
		c.templateAddCommand(), c.templateListCommand(), c.templateRemoveCommand()))
}

func (c *cli) templateAddCommand() *cobra.Command {
	var spec api.NewTemplate
	cmd := &cobra.Command{
		Use:   "add NAME... (--dir DIR | --tar FILE | --image REF)",
		Short: "Make a template of a root directory, a tarball or an OCI image",
		Args:  cobra.MinimumNArgs(1),
		RunE: c.onSocket(func(ctx context.Context, server *client.Client, args []string) error {
			spec.Names = args
			for _, path := range []*string{&spec.Dir, &spec.Tar} {
				if err := makeAbsolute(path); err != nil {
					return err
				}
			}
			made, err := server.AddTemplate(ctx, spec)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(made)
			}
			_, err = fmt.Fprintln(c.stdout, made.ID)
			return err
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&spec.Dir, "dir", "", "the root `directory` of a file system")
	flags.StringVar(&spec.Tar, "tar", "", "a tarball of one, compressed or not: a `file`")
	flags.StringVar(&spec.Image, "image", "", "an OCI image's `reference`")
	flags.BoolVar(&spec.Insecure, "insecure", false, "let the image's registry be plain HTTP or unverified")
	cmd.MarkFlagsOneRequired("dir", "tar", "image")
	cmd.MarkFlagsMutuallyExclusive("dir", "tar", "image")
	return c.addJSONFlag(cmd)
}

// makeAbsolute prepares a path for the server, whose directory is another one.
func makeAbsolute(path *string) error {
	if *path == "" {
		return nil
	}
	absolute, err := filepath.Abs(*path)
	if err != nil {
		return err
	}
	*path = absolute
	return nil
}

func (c *cli) templateListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the templates",
		Args:  cobra.NoArgs,
		RunE: c.onSocket(func(ctx context.Context, server *client.Client, _ []string) error {
			templates, err := server.Templates(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(templates)
			}
			t := newTable(c.stdout, "ID", "NAMES", "SOURCE", "SIZE", "CREATED")
			for _, tpl := range templates {
				t.row(tpl.ID, strings.Join(tpl.Names, " "), tpl.Source, megabytes(tpl.SizeBytes), stamp(tpl.CreatedAt))
			}
			return t.flush()
		}),
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) templateRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rm TEMPLATE...",
		Short:             "Remove templates, by id or name",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeTemplates,
		RunE: c.onSocket(func(ctx context.Context, server *client.Client, args []string) error {
			return each(args, func(ref string) error { return server.DeleteTemplate(ctx, ref) })
		}),
	}
}
