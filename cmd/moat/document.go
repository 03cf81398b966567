package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
)

// documentFlags are what a network document is made of.
type documentFlags struct {
	allow, deny []string
	noInternet  bool
	headers     []string
}

func (d *documentFlags) declare(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&d.allow, "allow", nil, "addresses, `CIDRs` or names it may reach; repeatable")
	flags.StringSliceVar(&d.deny, "deny", nil, "addresses or `CIDRs` it may not reach; repeatable")
	flags.BoolVar(&d.noInternet, "no-internet", false, "deny everything that --allow does not name")
	flags.StringArrayVar(&d.headers, "set-header", nil,
		"`'HOST NAME: VALUE'`: a header that requests to HOST get, in place of their own; repeatable")
}

func (d *documentFlags) given(cmd *cobra.Command) bool {
	flags := cmd.Flags()
	return flags.Changed("allow") || flags.Changed("deny") || flags.Changed("no-internet") || flags.Changed("set-header")
}

// network is the document. internet is nil when nothing was said about it.
func (d *documentFlags) network() (network api.Network, internet *bool, err error) {
	network = api.Network{AllowOut: d.allow, DenyOut: d.deny}
	if d.noInternet {
		internet = new(bool)
	}
	network.Rules, err = headerRules(d.headers)
	return network, internet, err
}

// update is the document in the place of another. Rules about requests are what
// an update that does not speak of them would leave.
func (d *documentFlags) update() (api.NetworkUpdate, error) {
	network, internet, err := d.network()
	if network.Rules == nil {
		network.Rules = &api.Rules{Hosts: map[string][]api.HostRule{}}
	}
	return api.NetworkUpdate{Network: network, AllowInternetAccess: internet}, err
}

// headerRules reads "HOST NAME: VALUE" lines. Errors do not show values.
func headerRules(lines []string) (*api.Rules, error) {
	if len(lines) == 0 {
		return nil, nil
	}
	hosts := make(map[string][]api.HostRule)
	for _, line := range lines {
		host, field, spaced := strings.Cut(strings.TrimSpace(line), " ")
		name, value, ok := strings.Cut(field, ":")
		name = strings.TrimSpace(name)
		if !spaced || !ok || name == "" {
			return nil, fmt.Errorf("--set-header for %q: want 'HOST NAME: VALUE'", host)
		}
		if hosts[host] == nil {
			hosts[host] = []api.HostRule{{Transform: api.Transform{Headers: make(map[string]string)}}}
		}
		headers := hosts[host][0].Transform.Headers
		if _, twice := headers[name]; twice {
			return nil, fmt.Errorf("--set-header for %q: %s is set twice", host, name)
		}
		headers[name] = strings.TrimSpace(value)
	}
	return &api.Rules{Hosts: hosts}, nil
}

// ruleLines describes rules, a line each. Values are not shown.
func ruleLines(r api.Rules) (lines []string) {
	for _, host := range slices.Sorted(maps.Keys(r.Hosts)) {
		for _, rule := range r.Hosts[host] {
			line := host + setsHeaders(slices.Sorted(maps.Keys(rule.Transform.Headers)))
			lines = append(lines, line+told(rule.Transform.StripCredentials, "strips credentials")+told(rule.Transform.Strict, "strict"))
		}
	}
	for _, rule := range r.Ordered {
		var headers []string
		for _, inject := range rule.Action.Inject {
			headers = append(headers, inject.Header)
		}
		verdict := "deny"
		if rule.Action.Allow {
			verdict = "allow"
		}
		lines = append(lines, rule.Name+": "+verdict+setsHeaders(headers)+told(rule.Action.StripCredentials, "strips credentials"))
	}
	return lines
}

func told(is bool, what string) string {
	if !is {
		return ""
	}
	return "; " + what
}

func setsHeaders(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "; sets " + strings.Join(names, ", ")
}
