package lab

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// Inventory lists what exists on the node now, one sorted line for each
// interface, nftables table, mount and process. What two
// inventories differ by has come or gone between them.
func (n *Node) Inventory() ([]string, error) {
	var lines []string
	for _, list := range []func() ([]string, error){n.links, n.tables, n.mounts, n.processes} {
		found, err := list()
		if err != nil {
			return nil, fmt.Errorf("take the node's inventory: %w", err)
		}
		lines = append(lines, found...)
	}
	slices.Sort(lines)
	return lines, nil
}

func (n *Node) links() (lines []string, err error) {
	err = n.Do(func() error {
		links, err := netlink.LinkList()
		for _, link := range links {
			lines = append(lines, "interface "+link.Attrs().Name)
		}
		return err
	})
	return lines, err
}

func (n *Node) tables() (lines []string, err error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(n.ns)))
	if err != nil {
		return nil, err
	}
	families := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge", nftables.TableFamilyARP: "arp",
	}
	tables, err := conn.ListTables()
	for _, t := range tables {
		lines = append(lines, fmt.Sprintf("table %s %s", families[t.Family], t.Name))
	}
	return lines, err
}

func (n *Node) mounts() (lines []string, err error) {
	file, err := os.Open(filepath.Join("/proc", strconv.Itoa(n.PID1()), "mountinfo"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		before, after, _ := strings.Cut(scanner.Text(), " - ")
		if fields := strings.Fields(before); len(fields) > 4 {
			kind, _, _ := strings.Cut(after, " ")
			lines = append(lines, fmt.Sprintf("mount %s of type %s", fields[4], kind))
		}
	}
	return lines, nil
}

// processes lists every process on the node but its first, by the number it
// has there. The node's /proc also shows those in PID namespaces below.
func (n *Node) processes() (lines []string, err error) {
	proc := fmt.Sprintf("/proc/%d/root/proc", n.PID1())
	dirs, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || filepath.Base(dir) == "1" {
			continue // an error means that it is gone by now
		}
		command := strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " "))
		lines = append(lines, fmt.Sprintf("process %s %s", filepath.Base(dir), command))
	}
	return lines, nil
}
