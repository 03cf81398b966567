package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// cgroupRoot is where the control groups are, on the node as on the machine.
const cgroupRoot = "/sys/fs/cgroup"

// inventory lists what the node has: interfaces, nftables tables, mounts and
// processes, and the control groups of our making.
func (s *Server) inventory() ([]string, error) {
	lines, err := s.Lab.Node.Inventory()
	if err != nil {
		return nil, err
	}
	groups, err := filepath.Glob(filepath.Join(cgroupRoot, "*", s.groupName(), "*"))
	if err != nil {
		return nil, err
	}
	own, err := filepath.Glob(filepath.Join(cgroupRoot, "*", s.groupName()))
	if err != nil {
		return nil, err
	}
	for _, path := range append(own, groups...) {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			lines = append(lines, "cgroup "+path)
		}
	}
	return lines, nil
}

// removeGroups removes the empty control groups of sandboxes that ended with the
// laboratory: the machine's hierarchy is the one thing that outlives it.
func (s *Server) removeGroups() error {
	var errs []error
	for _, pattern := range []string{filepath.Join(s.groupName(), "*"), s.groupName()} {
		groups, err := filepath.Glob(filepath.Join(cgroupRoot, "*", pattern))
		errs = append(errs, err)
		for _, path := range groups {
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				errs = append(errs, os.Remove(path))
			}
		}
	}
	return errors.Join(errs...)
}

// groupName is the name under which this server's control groups are: the
// machine may run other servers, whose groups are none of our business.
func (s *Server) groupName() string {
	sum := sha256.Sum256([]byte(s.DataDir))
	return "moat-" + hex.EncodeToString(sum[:3])
}

// Leftovers lists what is on the node now and was not before its first server.
func (s *Server) Leftovers(tb testing.TB) []string {
	tb.Helper()
	now, err := s.inventory()
	if err != nil {
		tb.Fatal(err)
	}
	known := make(map[string]int, len(s.before))
	for _, line := range s.before {
		known[line]++
	}
	return slices.DeleteFunc(now, func(line string) bool {
		known[line]--
		return known[line] >= 0
	})
}

// ExpectClean fails the test when anything is left. The kernel takes a moment
// to remove the last of a namespace.
func (s *Server) ExpectClean(tb testing.TB) {
	tb.Helper()
	var left []string
	s.Wait("nothing is left behind", func() bool {
		left = s.Leftovers(tb)
		return len(left) == 0 || tb.Failed()
	})
}
