package gvisor

import (
	"fmt"
	"slices"

	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"
)

// flags are gVisor's settings for every box, as its command line spells them.
// Everything that is not here keeps gVisor's default.
var flags = map[string]string{
	"platform":      "systrap",
	"network":       "sandbox", // gVisor's own network stack; the veth end is all it gets
	"directfs":      "false",   // the sentry opens no host file: it runs as nobody without capabilities
	"overlay2":      "none",    // every box states its overlay itself
	"host-uds":      "none",
	"host-fifo":     "none",
	"net-raw":       "false",
	"allow-suid":    "true", // sudo
	"rootless":      "false",
	"oci-seccomp":   "false",
	"host-settings": "ignore", // advice for operators, read anew at every start

	"allow-packet-socket-write": "false",
	"character-device-policy":   "emulated-only",
	"ignore-cgroups":            "true", // the driver places the processes
}

// newConfig returns gVisor's configuration for a box whose directory is root,
// and the same as command line arguments.
func newConfig(root string) (*config.Config, []string, error) {
	set := flag.NewFlagSet("gvisor", flag.ContinueOnError)
	config.RegisterFlags(set)
	for name, value := range flags {
		if err := set.Set(name, value); err != nil {
			return nil, nil, fmt.Errorf("set gvisor flag %s=%s: %w", name, value, err)
		}
	}
	if err := set.Set("root", root); err != nil {
		return nil, nil, fmt.Errorf("set gvisor flag root=%s: %w", root, err)
	}
	conf, err := config.NewFromFlags(set)
	if err != nil {
		return nil, nil, fmt.Errorf("check gvisor flags: %w", err)
	}
	args := conf.ToFlags()
	slices.Sort(args)
	return conf, args, nil
}
