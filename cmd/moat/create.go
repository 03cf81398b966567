package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

// createOptions are the flags of `moat sandbox create`.
type createOptions struct {
	template      string
	timeout       time.Duration
	allow, deny   []string
	noInternet    bool
	private       bool
	maskHost      string
	env, metadata []string
}

func (c *cli) sandboxCreateCommand() *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a sandbox and print its id",
		Long: "Create a sandbox and print its id. Without a word about the network it may reach the\n" +
			"whole internet, as E2B's clients expect. What --allow names stays reachable whatever\n" +
			"--deny and --no-internet say. Its public URLs are for everybody unless --private is\n" +
			"given; 'moat token show' prints the token that they ask for then.",
		Args: cobra.NoArgs,
		RunE: c.onServer(func(ctx context.Context, server *client.Client, _ []string) error {
			spec, err := o.spec(c.env)
			if err != nil {
				return usageError{err}
			}
			made, err := server.CreateSandbox(ctx, spec)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(made)
			}
			_, err = fmt.Fprintln(c.stdout, made.SandboxID)
			return err
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.template, "template", "base", "what to start it from: an id or a `name`")
	flags.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long it lives, rounded up to seconds")
	flags.StringSliceVar(&o.allow, "allow", nil, "addresses or `CIDRs` it may reach; repeatable")
	flags.StringSliceVar(&o.deny, "deny", nil, "addresses or `CIDRs` it may not reach; repeatable")
	flags.BoolVar(&o.noInternet, "no-internet", false, "deny everything that --allow does not name")
	flags.BoolVar(&o.private, "private", false, "its public URLs ask for a token")
	flags.StringVar(&o.maskHost, "mask-host", "", "Host `header` for its programs to see; ${PORT} in it stands for the port")
	flags.StringArrayVarP(&o.env, "env", "e", nil, "`NAME=value` for its commands, or NAME to pass on one's own; repeatable")
	flags.StringArrayVar(&o.metadata, "metadata", nil, "`key=value` to find it by; repeatable")
	_ = cmd.RegisterFlagCompletionFunc("template", c.completeTemplates) // fails only for an unknown flag
	return c.addJSONFlag(cmd)
}

// spec is what the flags ask for.
func (o createOptions) spec(env map[string]string) (api.NewSandbox, error) {
	if o.timeout < time.Second {
		return api.NewSandbox{}, fmt.Errorf("--timeout: %s is less than a second", o.timeout)
	}
	seconds := int64((o.timeout + time.Second - 1) / time.Second)
	spec := api.NewSandbox{TemplateID: o.template, Timeout: &seconds}
	if o.noInternet {
		allowed := false
		spec.AllowInternetAccess = &allowed
	}
	spec.Network = &api.Network{AllowOut: o.allow, DenyOut: o.deny}
	if o.private {
		everybody := false
		spec.Network.AllowPublicTraffic = &everybody
	}
	if o.maskHost != "" {
		spec.Network.MaskRequestHost = &o.maskHost
	}
	var err error
	if spec.EnvVars, err = parsePairs("--env", o.env, env); err != nil {
		return spec, err
	}
	spec.Metadata, err = parsePairs("--metadata", o.metadata, nil)
	return spec, err
}

// parsePairs parses "key=value" words. A word without "=" takes its value from
// env, where there is one to take from; values stay out of errors.
func parsePairs(flag string, words []string, env map[string]string) (map[string]string, error) {
	if len(words) == 0 {
		return nil, nil
	}
	parsed := make(map[string]string, len(words))
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok && env != nil {
			if value, ok = env[key]; !ok {
				return nil, fmt.Errorf("%s: %s is not set here", flag, key)
			}
		}
		if !ok || key == "" {
			return nil, fmt.Errorf("%s: %q is not key=value", flag, word)
		}
		if _, twice := parsed[key]; twice {
			return nil, fmt.Errorf("%s: %s is given twice", flag, key)
		}
		parsed[key] = value
	}
	return parsed, nil
}
