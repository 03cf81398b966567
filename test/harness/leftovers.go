package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// cgroupRoot is where the control groups are, on the node as on the machine.
const cgroupRoot = "/sys/fs/cgroup"

// inventory lists what the node has: interfaces, nftables tables, mounts and
// processes, and the control groups of this server's.
func (s *Server) inventory() ([]string, error) {
	lines, err := s.Lab.Node.Inventory()
	if err != nil {
		return nil, err
	}
	groups, err := s.groups()
	for _, path := range groups {
		lines = append(lines, "cgroup "+path)
	}
	return lines, err
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
	deadline := time.Now().Add(patience)
	for {
		left := s.Leftovers(tb)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			tb.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}

// removeGroups removes the control groups of sandboxes that ended with the
// laboratory: the machine's hierarchy is the one thing that outlives it.
func (s *Server) removeGroups() error {
	groups, err := s.groups()
	for _, path := range groups {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// groups lists this server's control groups, the inner ones first. The machine
// may run other servers, whose groups are none of our business.
func (s *Server) groups() (dirs []string, err error) {
	sum := sha256.Sum256([]byte(s.DataDir))
	name := "moat-" + hex.EncodeToString(sum[:3]) // as internal/app names them
	shared := name + "-ns"                        // as internal/sandbox/namespaces does
	for _, pattern := range []string{
		"*/" + name + "/*", name + "/*", "*/" + name, name,
		"*/" + shared + "/*", shared + "/*", "*/" + shared, shared,
	} {
		found, err := filepath.Glob(filepath.Join(cgroupRoot, pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				dirs = append(dirs, path)
			}
		}
	}
	return dirs, nil
}
