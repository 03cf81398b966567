package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// sysctlRoot shows the settings of the calling thread's network namespace.
const sysctlRoot = "/proc/sys/net"

func readSysctl(name string) (string, error) {
	value, err := os.ReadFile(filepath.Join(sysctlRoot, name))
	return strings.TrimSpace(string(value)), err
}

// setSysctl writes a setting unless it already has the value: then a read-only
// /proc/sys is good enough.
func setSysctl(name, value string) error {
	now, err := readSysctl(name)
	if err != nil {
		return fmt.Errorf("read net/%s: %w", name, err)
	}
	if now == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join(sysctlRoot, name), []byte(value), 0); err != nil {
		return fmt.Errorf("set net/%s to %s: %w", name, value, err)
	}
	return nil
}

// prepareHost makes the node forward packets of both families.
func prepareHost() error {
	if _, err := os.Stat(filepath.Join(sysctlRoot, "ipv6")); errors.Is(err, fs.ErrNotExist) {
		return errors.New("the kernel has IPv6 disabled; moat needs it to confine both families alike")
	}
	if err := keepRouterAdvertisements(); err != nil {
		return err
	}
	if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	return setSysctl("ipv6/conf/all/forwarding", "1")
}

// hastenRefusals lets the node tell sandboxes at once that they are refused.
// By default the kernel sends one ICMP error a second to each host, and one
// sandbox that tries addresses as fast as it can uses up the errors of all.
func hastenRefusals() error {
	return errors.Join(
		setSysctl("ipv4/icmp_ratelimit", "0"),
		setSysctl("ipv6/icmp/ratelimit", "0"),
		raiseSysctl("ipv4/icmp_msgs_per_sec", 10_000), // all errors of the node together
		raiseSysctl("ipv4/icmp_msgs_burst", 1_000),
	)
}

// raiseSysctl sets a number unless it is as high already.
func raiseSysctl(name string, value int) error {
	return moveSysctl(name, value, func(now int) bool { return now >= value })
}

// lowerSysctl sets a number unless it is as low already.
func lowerSysctl(name string, value int) error {
	return moveSysctl(name, value, func(now int) bool { return now <= value })
}

func moveSysctl(name string, value int, fine func(now int) bool) error {
	text, err := readSysctl(name)
	if err != nil {
		return fmt.Errorf("read net/%s: %w", name, err)
	}
	if now, err := strconv.Atoi(text); err == nil && fine(now) {
		return nil
	}
	return setSysctl(name, strconv.Itoa(value))
}

// keepRouterAdvertisements lets interfaces that get their IPv6 routes from
// router advertisements go on doing so. With forwarding on, the kernel obeys
// advertisements only where accept_ra is 2, and forgets the routes it learned
// elsewhere the moment forwarding is switched on.
func keepRouterAdvertisements() error {
	if on, err := readSysctl("ipv6/conf/all/forwarding"); err != nil || on != "0" {
		return err
	}
	interfaces, err := os.ReadDir(filepath.Join(sysctlRoot, "ipv6/conf"))
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range interfaces {
		setting := filepath.Join("ipv6/conf", i.Name(), "accept_ra")
		switch accepts, err := readSysctl(setting); {
		case errors.Is(err, fs.ErrNotExist): // the interface has just gone
		case err != nil:
			return fmt.Errorf("read net/%s: %w", setting, err)
		case accepts == "1":
			if err := setSysctl(setting, "2"); err != nil {
				return err
			}
		}
	}
	return nil
}

// quietIPv6 keeps an interface, or all future ones for "default", from giving
// itself addresses and from listening to routers: what a slot needs is set by
// hand, everything else is noise or an attack.
func quietIPv6(name string) error {
	for _, s := range [][2]string{
		{"disable_ipv6", "0"},
		{"accept_ra", "0"},
		{"autoconf", "0"},
		{"addr_gen_mode", "1"},
		{"dad_transmits", "0"},
	} {
		if err := setSysctl(filepath.Join("ipv6/conf", name, s[0]), s[1]); err != nil {
			return err
		}
	}
	return nil
}
