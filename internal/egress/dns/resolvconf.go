package dns

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
)

const (
	defaultResolvConf = "/etc/resolv.conf"
	// maxServers is how many servers of the file count, as in resolv.conf(5).
	maxServers = 3
	dnsPort    = 53
)

// resolvConf follows the file that lists the node's name servers. While the
// file cannot be read or lists none, the last good list holds.
type resolvConf struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex
	seen fs.FileInfo // nil if it was not there
	list []netip.AddrPort
}

func newResolvConf(path string, log *slog.Logger) (*resolvConf, error) {
	if path == "" {
		path = defaultResolvConf
	}
	c := &resolvConf{path: path, log: log}
	return c, c.refresh()
}

// servers returns at least one server.
func (c *resolvConf) servers() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(); err != nil {
		c.log.Warn("keeping the name servers that are known", "error", err)
	}
	return c.list
}

// refresh reads the file if it is not the one that was seen last.
func (c *resolvConf) refresh() error {
	info, err := os.Stat(c.path)
	if err != nil {
		return c.unseen(fmt.Errorf("find the node's name servers: %w", err))
	}
	if c.seen != nil && sameVersion(info, c.seen) {
		return nil
	}
	text, err := os.ReadFile(c.path)
	if err != nil {
		return c.unseen(fmt.Errorf("read the node's name servers: %w", err))
	}
	c.seen = info
	list := parseResolvConf(string(text))
	if len(list) == 0 {
		return fmt.Errorf("%s lists no name server", c.path)
	}
	c.list = list
	return nil
}

func sameVersion(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// unseen makes the same trouble be reported once.
func (c *resolvConf) unseen(err error) error {
	if c.seen == nil && c.list != nil {
		return nil
	}
	c.seen = nil
	return err
}

// parseResolvConf returns the servers that the lines "nameserver ADDRESS"
// name. Other lines are about how people complete names, which does not
// concern us.
func parseResolvConf(text string) (servers []netip.AddrPort) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" || len(servers) == maxServers {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, dnsPort))
		}
	}
	return servers
}
