package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// adopt takes over a box that an earlier server made.
func (r *Runtime) adopt(id string) (*box, error) {
	rec, err := loadRecord(r.boxDir(id))
	if err != nil {
		return nil, err
	}
	b, err := r.describe(id, rec.Limits)
	if err != nil {
		return nil, err
	}
	b.started = rec.Started
	if rec.Grouped {
		if b.group, err = findGroup(r.groupPath(id)); err != nil {
			return nil, err
		}
	}
	if b.sentry, err = openProcess(rec.Sentry.PID, rec.Sentry.Start); err != nil {
		return nil, gone(err)
	}
	if rec.Gofer != nil {
		if b.gofer, err = openProcess(rec.Gofer.PID, rec.Gofer.Start); err != nil {
			b.release()
			return nil, gone(err)
		}
	}
	b.watch()
	if b.started {
		if err := b.watchGuest(); err != nil {
			b.release()
			return nil, err
		}
	}
	return b, nil
}

// gone translates the end of a process into the end of its box.
func gone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return sandbox.ErrGone
	}
	return err
}

// List implements sandbox.Runtime.
func (r *Runtime) List(context.Context) ([]string, error) {
	found := map[string]bool{}
	entries, err := os.ReadDir(r.boxDir(""))
	if err != nil {
		return nil, fmt.Errorf("list boxes: %w", err)
	}
	for _, e := range entries {
		found[e.Name()] = true
	}
	names, err := r.groupNames()
	if err != nil {
		return nil, fmt.Errorf("list boxes: %w", err)
	}
	for _, name := range names {
		found[name] = true
	}
	processes, err := r.processes()
	if err != nil {
		return nil, fmt.Errorf("list boxes: %w", err)
	}
	for id := range processes {
		found[id] = true
	}
	var ids []string
	for id := range found {
		if validID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// groupNames lists the cgroups of boxes.
func (r *Runtime) groupNames() ([]string, error) {
	parent, err := findGroup(r.groupPath(""))
	if err != nil {
		return nil, err
	}
	dirs, err := parent.dirs()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
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

// Remove implements sandbox.Runtime.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if !validID.MatchString(id) {
		return nil // nothing of ours has such a name
	}
	if b := r.known(id); b != nil {
		return b.Destroy(ctx)
	}
	if err := r.remove(ctx, id); err != nil {
		return fmt.Errorf("remove box %s: %w", id, err)
	}
	return nil
}

// remove destroys a box of which this process knows nothing but its id.
func (r *Runtime) remove(ctx context.Context, id string) error {
	processes, err := r.processes()
	if err != nil {
		return err
	}
	for _, pid := range processes[id] {
		if err := r.endOrphan(ctx, id, pid); err != nil {
			return err
		}
	}
	g, err := findGroup(r.groupPath(id))
	if err != nil {
		return err
	}
	if err := g.remove(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(r.boxDir(id)); err != nil {
		return fmt.Errorf("remove box directory: %w", err)
	}
	return nil
}

// endOrphan kills a process if it still belongs to the box.
func (r *Runtime) endOrphan(ctx context.Context, id string, pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	p, err := newProcess(pid, fd)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.close()
	if r.boxOf(pid) != id {
		return nil
	}
	return p.killAndWait(ctx)
}

// processes finds the processes of every box by their command lines, which
// needs no record: a server may have been killed before it wrote one.
func (r *Runtime) processes() (map[string][]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found := map[string][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if id := r.boxOf(pid); id != "" {
			found[id] = append(found[id], pid)
		}
	}
	return found, nil
}

// boxOf returns the id of the box that a process belongs to, or "".
func (r *Runtime) boxOf(pid int) string {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "" // gone
	}
	args := bytes.Split(cmdline, []byte{0})
	if name := string(args[0]); name != sentryName && name != goferName {
		return ""
	}
	for _, arg := range args[1:] {
		if dir, ok := strings.CutPrefix(string(arg), "--root="+r.boxDir("")+"/"); ok && validID.MatchString(dir) {
			return dir
		}
	}
	return ""
}
