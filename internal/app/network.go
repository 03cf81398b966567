package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"go4.org/netipx"

	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/policy"
)

// openNetwork takes possession of the network namespace the server runs in.
func openNetwork(c Config, instance string, names kernel.PublicNames) (*kernel.Network, *policy.Never, error) {
	own, err := ownAddresses()
	if err != nil {
		return nil, nil, err
	}
	never, err := policy.NewNever(own, c.AllowRanges)
	if err != nil {
		return nil, nil, fmt.Errorf("never-reachable table: %w", err)
	}
	network, err := kernel.Open(kernel.Config{
		Instance: instance, StateDir: filepath.Join(runDir(instance), "netns"), Never: never, Names: names, Logger: c.Logger,
	})
	return network, never, err
}

// ownAddresses are the addresses of this machine. Packets to them are refused
// wherever they point, also to addresses that appear later: the kernel's rules
// for local delivery see to that. Here they give the refusal its reason.
func ownAddresses() ([]policy.Range, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	var own []policy.Range
	for _, a := range addrs {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if addr, ok := netipx.FromStdIP(ipnet.IP); ok {
			own = append(own, policy.Range{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Why: "an address of the machine that runs the sandbox"})
		}
	}
	return own, nil
}

// closeNetwork lets go of the namespace; empty says that no sandbox needs it.
func (m *machine) closeNetwork(ctx context.Context, empty bool) error {
	var err error
	if empty {
		err = m.network.Uninstall(ctx)
	}
	return errors.Join(err, m.network.Close())
}
