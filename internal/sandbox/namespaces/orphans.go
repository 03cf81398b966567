package namespaces

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// Load implements sandbox.Runtime. A box that an earlier server prepared and
// did not start runs nothing and is gone.
func (r *Runtime) Load(_ context.Context, id string) (sandbox.Box, error) {
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("load box %.50q: %w", id, sandbox.ErrGone)
	}
	if b := r.known(id); b != nil {
		return b, nil
	}
	b, err := r.load(id)
	if err != nil {
		return nil, fmt.Errorf("load box %s: %w", id, err)
	}
	return b, nil
}

func (r *Runtime) load(id string) (*box, error) {
	rec, err := loadRecord(r.boxDir(id))
	if err != nil {
		return nil, err
	}
	if rec.Guest == nil {
		return nil, sandbox.ErrGone
	}
	e, err := r.findEngine(rec.Engine)
	if err != nil {
		return nil, err
	}
	b := r.newBox(id, e)
	if b.guest, err = openProcess(rec.Guest.PID, rec.Guest.Start); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			err = sandbox.ErrGone
		}
		return nil, err
	}
	if err := r.add(b); err != nil {
		b.guest.close()
		return nil, err
	}
	b.watch()
	return b, nil
}

// List implements sandbox.Runtime.
func (r *Runtime) List(context.Context) ([]string, error) {
	found := make(map[string]bool)
	dirs := []string{r.boxDir("")}
	for _, name := range engineNames {
		dirs = append(dirs, r.stateDir(name))
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list boxes: %w", err)
		}
		for _, e := range entries {
			found[e.Name()] = true
		}
	}
	groups, err := groupNames(r.groupPath(""))
	if err != nil {
		return nil, fmt.Errorf("list boxes: %w", err)
	}
	for _, name := range groups {
		found[name] = true
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

// Remove implements sandbox.Runtime.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if !validID.MatchString(id) {
		return nil // nothing of ours has such a name
	}
	if b := r.known(id); b != nil {
		return b.Destroy(ctx)
	}
	for _, name := range engineNames {
		// Whichever made it; one that was uninstalled since cannot be asked.
		e, err := r.findEngine(name)
		if err != nil {
			e = &engine{name: name, state: r.stateDir(name)}
		}
		if err := r.wipe(ctx, id, e); err != nil {
			return fmt.Errorf("remove box %s: %w", id, err)
		}
	}
	return nil
}

// wipe removes every trace of a box. Its processes are in its cgroups, or else
// below the init process that the engine knows.
func (r *Runtime) wipe(ctx context.Context, id string, e *engine) error {
	if err := e.delete(ctx, id); err != nil {
		return err
	}
	if err := removeGroups(ctx, r.groupPath(id)); err != nil {
		return err
	}
	return removeDir(r.boxDir(id))
}
