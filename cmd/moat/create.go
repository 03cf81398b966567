package main

import (
	"context"
	"fmt"
	"strconv"
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
	document      documentFlags
	private       bool
	publicPorts   []uint
	privatePorts  []uint
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
			"--deny and --no-internet say. Its public URLs are for everybody unless --private or\n" +
			"--private-port is given; 'moat token show' prints the token that they ask for then.",
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
	o.document.declare(cmd)
	flags.BoolVar(&o.private, "private", false, "its public URLs ask for a token")
	flags.UintSliceVar(&o.publicPorts, "public-port", nil, "`ports` whose public URLs are for everybody all the same; repeatable")
	flags.UintSliceVar(&o.privatePorts, "private-port", nil, "`ports` whose public URLs alone ask for the token; repeatable")
	flags.StringVar(&o.maskHost, "mask-host", "", "Host `header` for its programs to see; ${PORT} in it stands for the port")
	flags.StringArrayVarP(&o.env, "env", "e", nil, "`NAME=value` for its commands, or NAME to pass on one's own; repeatable")
	flags.StringArrayVar(&o.metadata, "metadata", nil, "`key=value` to find it by; repeatable")
	_ = cmd.RegisterFlagCompletionFunc("template", c.completeTemplates) // fails only for an unknown flag
	return c.addJSONFlag(cmd)
}

// spec is what the flags ask for.
func (o createOptions) spec(env map[string]string) (spec api.NewSandbox, err error) {
	if o.timeout < time.Second {
		return spec, fmt.Errorf("--timeout: %s is less than a second", o.timeout)
	}
	seconds := int64((o.timeout + time.Second - 1) / time.Second)
	spec = api.NewSandbox{TemplateID: o.template, Timeout: &seconds}
	network, internet, err := o.document.network()
	if err != nil {
		return spec, err
	}
	spec.Network, spec.AllowInternetAccess = &network, internet
	if o.private {
		everybody := false
		spec.Network.AllowPublicTraffic = &everybody
	}
	if spec.Network.Ports, err = visibility(o.publicPorts, o.privatePorts); err != nil {
		return spec, err
	}
	if o.maskHost != "" {
		spec.Network.MaskRequestHost = &o.maskHost
	}
	if spec.EnvVars, err = parsePairs("--env", o.env, env); err != nil {
		return spec, err
	}
	spec.Metadata, err = parsePairs("--metadata", o.metadata, nil)
	return spec, err
}

// visibility is what the flags say about single ports.
func visibility(public, private []uint) (map[string]api.Visibility, error) {
	ports := make(map[string]api.Visibility, len(public)+len(private))
	for _, port := range public {
		ports[strconv.FormatUint(uint64(port), 10)] = api.Public
	}
	for _, port := range private {
		text := strconv.FormatUint(uint64(port), 10)
		if ports[text] == api.Public {
			return nil, fmt.Errorf("--public-port and --private-port: %s is in both", text)
		}
		ports[text] = api.Private
	}
	return ports, nil
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
