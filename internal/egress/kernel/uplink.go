package kernel

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is an interface that a default route leads to.
type Uplink struct {
	Name string
	MTU  int
	// IPv4 and IPv6 say for which families there is a default route.
	IPv4, IPv6 bool
}

// Report is what can be said about the way out of this machine.
type Report struct {
	Uplinks []Uplink
	// Findings are sentences for people, each about something that stands in
	// the way of sandboxes. None means that all is well.
	Findings []string
}

// Inspect looks at the network namespace of the process. It changes nothing
// and needs no Network; the instance is the one a Network would be opened with.
func Inspect(instance string) (Report, error) {
	uplinks, err := findUplinks()
	if err != nil {
		return Report{}, fmt.Errorf("inspect network: %w", err)
	}
	walls, err := foreignWalls(layout{instance: instance}.ifPrefix())
	if err != nil {
		return Report{}, fmt.Errorf("inspect network: %w", err)
	}
	report := Report{Uplinks: uplinks, Findings: walls}
	if !slices.ContainsFunc(uplinks, func(u Uplink) bool { return u.IPv4 }) {
		report.Findings = append(report.Findings, "There is no default route for IPv4: sandboxes reach nothing over IPv4.")
	}
	if !slices.ContainsFunc(uplinks, func(u Uplink) bool { return u.IPv6 }) {
		report.Findings = append(report.Findings, "There is no default route for IPv6: sandboxes reach nothing over IPv6.")
	}
	for _, u := range uplinks {
		if u.MTU < minMTU {
			report.Findings = append(report.Findings, fmt.Sprintf("Packets on %s are limited to %d bytes, IPv6 needs %d.", u.Name, u.MTU, minMTU))
		}
	}
	return report, nil
}

func findUplinks() ([]Uplink, error) {
	var uplinks []Uplink
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_DST)
		if err != nil {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
		for _, route := range routes {
			for _, index := range linksOf(route) {
				link, err := netlink.LinkByIndex(index)
				if err != nil {
					return nil, fmt.Errorf("find the interface of a default route: %w", err)
				}
				uplinks = addUplink(uplinks, link.Attrs(), family)
			}
		}
	}
	return uplinks, nil
}

// linksOf returns the interfaces of a route; one with several next hops has
// several. A route that refuses has none.
func linksOf(r netlink.Route) []int {
	var links []int
	if r.LinkIndex != 0 && r.Type == unix.RTN_UNICAST {
		links = append(links, r.LinkIndex)
	}
	for _, hop := range r.MultiPath {
		links = append(links, hop.LinkIndex)
	}
	return links
}

func addUplink(uplinks []Uplink, link *netlink.LinkAttrs, family int) []Uplink {
	i := slices.IndexFunc(uplinks, func(u Uplink) bool { return u.Name == link.Name })
	if i < 0 {
		i = len(uplinks)
		uplinks = append(uplinks, Uplink{Name: link.Name, MTU: link.MTU})
	}
	uplinks[i].IPv4 = uplinks[i].IPv4 || family == netlink.FAMILY_V4
	uplinks[i].IPv6 = uplinks[i].IPv6 || family == netlink.FAMILY_V6
	return uplinks
}

// What the interfaces of slots can have: IPv6 needs the smaller, in bytes.
const (
	minMTU = 1280
	maxMTU = 1500
)

// smallestMTU is what the interfaces of slots are given, so that packets fit
// every way out.
func smallestMTU(uplinks []Uplink) int {
	mtu := maxMTU
	for _, u := range uplinks {
		mtu = min(mtu, u.MTU)
	}
	return max(mtu, minMTU)
}

// foreignWalls finds chains of other programs that drop what they do not know,
// as Docker's do: they stop the traffic of sandboxes whatever our rules say.
func foreignWalls(ifPrefix string) ([]string, error) {
	chains, err := (&nftables.Conn{}).ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var walls []string
	docker := slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Name == "DOCKER-USER" })
	for _, c := range chains {
		forwards := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Table.Family != nftables.TableFamilyNetdev
		drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		if !forwards || !drops || strings.HasPrefix(c.Table.Name, "moat_") {
			continue
		}
		text := fmt.Sprintf("The firewall chain %s of table %s %s drops forwarded packets that it does not know, also those of sandboxes.",
			c.Name, familyName(c.Table.Family), c.Table.Name)
		if docker {
			text += fmt.Sprintf(" Docker lets them through after: iptables -I DOCKER-USER -i %[1]s+ -j ACCEPT; iptables -I DOCKER-USER -o %[1]s+ -j ACCEPT (and the same with ip6tables).", ifPrefix)
		}
		walls = append(walls, text)
	}
	return walls, nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyBridge:
		return "bridge"
	}
	return "inet"
}
