package namespaces

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// hierarchy is one tree of cgroups: a version 1 tree with the controllers that
// are in its options, or the version 2 tree.
type hierarchy struct {
	point       string
	controllers map[string]bool
	unified     bool
}

// hierarchies lists the trees that the machine has mounted.
func hierarchies() ([]hierarchy, error) {
	all, err := mounts()
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	var found []hierarchy
	for _, m := range all {
		h := hierarchy{point: m.point, controllers: make(map[string]bool)}
		names := strings.FieldsFunc(m.options, func(r rune) bool { return r == ',' })
		switch m.fsType {
		case "cgroup":
		case "cgroup2":
			h.unified = true
			data, err := os.ReadFile(filepath.Join(m.point, "cgroup.controllers"))
			if err != nil {
				return nil, fmt.Errorf("find cgroups: %w", err)
			}
			names = strings.Fields(string(data))
		default:
			continue
		}
		for _, name := range names {
			h.controllers[name] = true
		}
		found = append(found, h)
	}
	return found, nil
}

// group is a box's cgroup in all trees.
type group struct {
	path  string
	trees []hierarchy
}

func findGroup(path string) (*group, error) {
	trees, err := hierarchies()
	if err != nil {
		return nil, err
	}
	return &group{path: path, trees: trees}, nil
}

// read returns one line of a controller's file: v1 or v2 by which tree has the
// controller. A missing tree is fs.ErrNotExist.
func (g *group) read(controller, v1, v2 string) (string, error) {
	for _, tree := range g.trees {
		if !tree.controllers[controller] {
			continue
		}
		name := v1
		if tree.unified {
			name = v2
		}
		data, err := os.ReadFile(filepath.Join(tree.point, g.path, name))
		return strings.TrimSpace(string(data)), err
	}
	return "", fmt.Errorf("cgroup controller %s: %w", controller, fs.ErrNotExist)
}

// field returns the number after name in text, lines of "name number".
func field(text, name string) int64 {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && key == name {
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// oomKilled reports whether the memory limit ended a process of the group.
func (g *group) oomKilled() bool {
	text, err := g.read("memory", "memory.oom_control", "memory.events")
	return err == nil && field(text, "oom_kill") > 0
}

// usage reads what the group consumes.
func (g *group) usage() (sandbox.Usage, error) {
	var u sandbox.Usage
	memory, err := g.read("memory", "memory.usage_in_bytes", "memory.current")
	if err != nil {
		return u, err
	}
	if u.MemoryBytes, err = strconv.ParseInt(memory, 10, 64); err != nil {
		return u, fmt.Errorf("read memory use: %w", err)
	}
	if text, err := g.read("cpuacct", "cpuacct.usage", ""); err == nil {
		n, err := strconv.ParseInt(text, 10, 64)
		u.CPUTime = time.Duration(n)
		return u, err
	}
	for _, tree := range g.trees {
		if tree.unified { // has this file whatever its controllers
			data, err := os.ReadFile(filepath.Join(tree.point, g.path, "cpu.stat"))
			u.CPUTime = time.Duration(field(string(data), "usage_usec")) * time.Microsecond
			return u, err
		}
	}
	return u, fmt.Errorf("read CPU use: %w", fs.ErrNotExist)
}

// contains reports whether process pid is in the group of a controller.
func (g *group) contains(controller string, pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		names, path, _ := strings.Cut(rest, ":")
		if path != g.path {
			continue
		}
		if strings.Contains(","+names+",", ","+controller+",") {
			return true
		}
		for _, tree := range g.trees {
			if names == "" && tree.unified && tree.controllers[controller] {
				return true
			}
		}
	}
	return false
}

// removeGroups ends every process in the groups at path, in all trees, and
// removes them with the groups below.
func removeGroups(ctx context.Context, path string) error {
	g, err := findGroup(path)
	if err != nil {
		return err
	}
	for _, tree := range g.trees {
		if err := removeTree(ctx, filepath.Join(tree.point, path)); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// removeTree removes one group and those below it. Processes that were killed
// stay in it until they are gone for good.
func removeTree(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(ctx, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		if err := killAll(dir); err != nil {
			return err
		}
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", dir, err, context.Cause(ctx))
		case <-again.C:
		}
	}
}

// killAll kills the processes in one group.
func killAll(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	for text := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(text)
		if err != nil || pid <= 1 {
			continue // 0: a process of a namespace we do not see
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// groupNames lists the groups directly below path in any tree.
func groupNames(path string) ([]string, error) {
	trees, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, tree := range trees {
		entries, err := os.ReadDir(filepath.Join(tree.point, path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}
