package namespaces

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// fakeTree is a directory that looks like a tree of cgroups with one group,
// "/g", that has these files.
func fakeTree(t *testing.T, unified bool, files map[string]string, controllers ...string) hierarchy {
	t.Helper()
	h := hierarchy{point: t.TempDir(), unified: unified, controllers: make(map[string]bool)}
	for _, name := range controllers {
		h.controllers[name] = true
	}
	if err := os.Mkdir(filepath.Join(h.point, "g"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(h.point, "g", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// A machine has either version of cgroups, or both with the controllers in
// version 1. What is read of a group is the same.
func TestGroupIsReadInBothVersions(t *testing.T) {
	want := sandbox.Usage{CPUTime: 1500 * time.Microsecond, MemoryBytes: 1 << 20}
	memory1 := map[string]string{"memory.usage_in_bytes": "1048576\n", "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}
	files2 := map[string]string{
		"memory.current": "1048576\n", "memory.events": "oom 2\noom_kill 1\noom_group_kill 0\n", "cpu.stat": "usage_usec 1500\nuser_usec 7\n",
	}
	for name, trees := range map[string][]hierarchy{
		"version 1": {
			fakeTree(t, false, memory1, "memory"),
			fakeTree(t, false, map[string]string{"cpuacct.usage": "1500000\n"}, "cpu", "cpuacct"),
		},
		"version 2": {fakeTree(t, true, files2, "cpu", "memory", "pids")},
		"both": {
			fakeTree(t, true, map[string]string{"cpu.stat": "usage_usec 9\n"}, "hugetlb"),
			fakeTree(t, false, memory1, "memory"),
			fakeTree(t, false, map[string]string{"cpuacct.usage": "1500000\n"}, "cpuacct"),
		},
	} {
		g := &group{path: "/g", trees: trees}
		if got, err := g.usage(); err != nil || got != want {
			t.Errorf("%s: used is %+v (%v), want %+v", name, got, err, want)
		}
		if !g.oomKilled() {
			t.Errorf("%s: that the memory limit killed is not seen", name)
		}
	}
	quiet := &group{path: "/g", trees: []hierarchy{fakeTree(t, true, map[string]string{"memory.events": "oom 2\noom_kill 0\noom_group_kill 1\n"}, "memory")}}
	if quiet.oomKilled() {
		t.Error("a group in which nothing was killed counts as killed")
	}
	if _, err := quiet.read("cpu", "cpu.cfs_quota_us", "cpu.max"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a controller that no tree has: %v", err)
	}
}

// A process is in a group of version 2 only as far as that tree has the
// controller.
func TestGroupContains(t *testing.T) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut("\n"+string(text), "\n0::")
	path, _, _ := strings.Cut(rest, "\n")
	if !ok {
		t.Fatalf("this process is in no group of version 2: %s", text)
	}
	g := &group{path: path, trees: []hierarchy{{unified: true, controllers: map[string]bool{"misc": true}}}}
	for _, test := range []struct {
		path, controller string
		want             bool
	}{{path, "misc", true}, {path, "rdma", false}, {path + "/x", "misc", false}} {
		g.path = test.path
		if got := g.contains(test.controller, os.Getpid()); got != test.want {
			t.Errorf("in %s of %s: %v, want %v", test.path, test.controller, got, test.want)
		}
	}
}
